"""How a training run is spread over devices: the groups, the batch and what is computed again."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """data, tensor, pipeline, context: sizes of the groups, whose product is the number of devices; expert: devices
    that the experts of a layer are spread over, within data x context x tensor. sharded: weights, gradients and
    optimizer lie in shards over the data group and are gathered layer by layer (FSDP, ZeRO-3); else only the optimizer
    does (ZeRO-1). rows: sequences of a micro-batch; sequence: their tokens; micro_batches: of a step and replica.
    virtual: model chunks of a pipeline stage. recompute: activation checkpointing of every layer. optimizer_sharded:
    the optimizer's state is spread over the replicas (ZeRO-1). expert_tensor: tensor group of an expert.
    sequence_parallel: norms and residuals are split over the tensor group too.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    sharded: bool = False
    rows: int = 1
    sequence: int = 4096
    micro_batches: int = 1
    virtual: int = 1
    recompute: bool = False
    optimizer_sharded: bool = True
    expert_tensor: int = 1
    sequence_parallel: bool = True

    @property
    def devices(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def tokens_per_step(self) -> int:
        return self.data * self.rows * self.micro_batches * self.sequence

    @property
    def expert_replicas(self) -> int:
        """Devices that hold the same experts."""
        return max(1, self.data * self.context * self.tensor // (self.expert * self.expert_tensor))

    @property
    def micro_batch_tokens(self) -> float:
        """Tokens of a micro-batch that one device of a context group holds."""
        return self.rows * self.sequence / self.context

    @property
    def bubble(self) -> float:
        """Idle time of a pipeline over its work: (p - 1) / (m v). Source: Narayanan et al., arXiv 2104.04473."""
        return (self.pipeline - 1) / (self.micro_batches * self.virtual)

    @property
    def label(self) -> str:
        """As people write it: "DP128 TP8 PP16"."""
        named = (
            ("DP", self.data),
            ("TP", self.tensor),
            ("PP", self.pipeline),
            ("CP", self.context),
            ("EP", self.expert),
        )
        groups = " ".join(f"{name}{size}" for name, size in named if size > 1)
        return (groups or "one device") + (" FSDP" if self.sharded else "") + (" recompute" if self.recompute else "")
