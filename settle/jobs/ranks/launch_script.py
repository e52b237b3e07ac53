"""The script that starts a run on many hosts: torchrun by hand, or through Slurm, Kubernetes or SkyPilot."""

import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Template

from settle.base.errors import UsageError
from settle.base.run import free_name
from settle.base.settings import recipe_text
from settle.jobs.settings import TrainSettings, TuneSettings

PORT = 29511  # where the ranks of a job meet
RESTARTS = 10
END = "RECIPE"  # ends the recipe within a script


# kubeflow.org/v1 PyTorchJob: the operator tells torchrun the number of hosts and where they meet
KUBERNETES = Template("""\
# change image and claimName to yours; settle-lm is installed in the image
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata:
  name: $name
spec:
  elasticPolicy:
    rdzvBackend: c10d
    minReplicas: 1
    maxReplicas: $hosts
    maxRestarts: $restarts
    nProcPerNode: $ranks
  pytorchReplicaSpecs:
    Worker:
      replicas: $hosts
      restartPolicy: OnFailure
      template:
        spec:
          containers:
            - name: pytorch
              image: settle:latest
              env:
                - {name: SETTLE_HOME, value: /shared/settle}
              command: [bash, -c]
              args:
                - |
$body
              $limits
              volumeMounts:
                - {name: shared, mountPath: /shared}
          volumes:
            - name: shared
              persistentVolumeClaim: {claimName: settle}
""")


@dataclass(frozen=True)
class Launch:
    """A run to start: its command after `settle`, its recipe, and how many processes on how many hosts.

    gpus: of each host, a process each; None: one process on the CPU. notes: lines about it.
    """

    name: str
    command: Sequence[str]
    recipe: str
    hosts: int
    gpus: int | None
    notes: Sequence[str]

    def lines(self, meeting: str, starter: str = "") -> str:
        """Return the shell lines that every host runs.

        meeting: torchrun's options that say where the ranks meet; starter: what starts torchrun on every host.
        """
        ranks = f"--nproc-per-node {self.gpus or 1} --max-restarts {RESTARTS}"
        command = shlex.join(["-m", "settle", *self.command, "--recipe", f"{self.name}.toml"])
        return (
            f"cat > {self.name}.toml <<'{END}'\n{self.recipe.rstrip()}\n{END}\n"
            "export PYTHONSAFEPATH=1  # no rank imports what lies in the folder it is started in\n"
            f"{starter}torchrun {meeting} {ranks} {command}\n"
        )

    @property
    def comment(self) -> str:
        return "".join(f"# {note}\n" for note in self.notes)


def script(kind: str, job: str, settings: TrainSettings | TuneSettings, forecast: Mapping[str, object]) -> str:
    """Return the script of a kind, ready to be written to a file. forecast: of this machine. Raises UsageError."""
    if "-" in settings.inputs:
        raise UsageError("standard input cannot be read on another host", "give a file that every host sees")
    name = settings.name or free_name(settings.usual_name())
    asked = settings.model_copy(update={"name": name})
    recipe = recipe_text({**asked.to_recipe(), "name": name})
    if END in recipe.splitlines():
        raise UsageError(f"the recipe holds a line {END}", "change that setting")
    command = [job, settings.model] if isinstance(settings, TuneSettings) else [job]
    notes = [
        f"settle {job} {name}: {settings.hosts} hosts, {settings.gpus or 1} processes each",
        "SETTLE_HOME, the inputs and this folder have to be the same for all hosts: a shared disk",
        *_forecast(forecast),
    ]
    return _KINDS[kind](Launch(name, command, recipe, settings.hosts, settings.gpus, notes))


def _forecast(forecast: Mapping[str, object]) -> list[str]:
    """Return the forecast as lines; it is that of one process here."""
    units = {"time": "s", "peak_memory": "bytes", "loss": "nats", "tokens": "tokens"}
    lines = []
    for name, unit in units.items():
        value = forecast.get(name)
        if isinstance(value, Mapping):
            low, high = value.get("low"), value.get("high")
            lines.append(f"  {name}: {value.get('value'):,.6g} {unit} (80 % interval {low:,.6g} to {high:,.6g})")
    of_ranks = forecast.get("rank_memory")
    if isinstance(of_ranks, Mapping):
        beside = f", and {of_ranks['host']:,.6g} bytes of its host's memory" if of_ranks.get("host") else ""
        lines.append(f"  each of {of_ranks['ranks']:,} ranks while it trains: {of_ranks['value']:,.6g} bytes{beside}")
    return ["forecast of one process on the machine that wrote this:", *lines] if lines else []


def _torchrun(launch: Launch) -> str:
    head = "#!/usr/bin/env bash\n" + launch.comment
    if launch.hosts == 1:
        return head + "set -euo pipefail\n" + launch.lines("--standalone")
    head += "# run it on every host: HEAD=ADDRESS-OF-THE-FIRST-HOST bash THIS-FILE\nset -euo pipefail\n"
    return head + ': "${HEAD:?the address of the first host}"\n' + launch.lines(_meeting(launch, '"$HEAD', launch.name))


def _meeting(launch: Launch, host: str, job: str, hosts: str = "") -> str:
    where = f'--rdzv-endpoint {host}:{PORT}"'
    return f"--nnodes {hosts or launch.hosts} --rdzv-backend c10d {where} --rdzv-id {job}"


def _slurm(launch: Launch) -> str:
    gpus = f"#SBATCH --gpus-per-node={launch.gpus}\n" if launch.gpus else ""
    body = launch.lines(_meeting(launch, '"$head', '"$SLURM_JOB_ID"'), "srun ")
    return (
        f"#!/usr/bin/env bash\n#SBATCH --job-name=settle-{launch.name}\n#SBATCH --nodes={launch.hosts}\n"
        f"#SBATCH --ntasks-per-node=1\n#SBATCH --exclusive\n{gpus}#SBATCH --requeue\n{launch.comment}"
        f'set -euo pipefail\nhead=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        f"{body}"
    )


def _kubernetes(launch: Launch) -> str:
    body = textwrap.indent("cd /shared\n" + launch.lines(""), " " * 18).rstrip("\n")
    limits = f"resources: {{limits: {{nvidia.com/gpu: {launch.gpus}}}}}" if launch.gpus else "resources: {}"
    return launch.comment + KUBERNETES.substitute(
        name=_dns(launch.name),
        hosts=launch.hosts,
        restarts=RESTARTS,
        ranks=launch.gpus or 1,
        body=body,
        limits=limits,
    )


def _dns(name: str) -> str:
    """Return a name as Kubernetes takes it."""
    return "settle-" + "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")[:50]


def _skypilot(launch: Launch) -> str:
    gpus = f"resources:\n  accelerators: H100:{launch.gpus}  # or another type\n" if launch.gpus else ""
    body = 'head=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
    body += launch.lines(_meeting(launch, '"$head', '"$SKYPILOT_TASK_ID"', '"$SKYPILOT_NUM_NODES"'))
    return (
        f"{launch.comment}name: {_dns(launch.name)}\nnum_nodes: {launch.hosts}\n{gpus}"
        f"setup: |\n  pip install settle-lm\nrun: |\n{textwrap.indent(body, '  ')}"
    )


_KINDS: Mapping[str, Callable[[Launch], str]] = {
    "torchrun": _torchrun,
    "slurm": _slurm,
    "kubernetes": _kubernetes,
    "skypilot": _skypilot,
}
