// Dots: one figure against another, with the interval of the second, what none other beats, and what was chosen. The
// chosen one is a diamond, those of the frontier are filled, so that colour is not the only sign.
import { followsBox, ticks } from "axes";

const LEFT = 64, RIGHT = 24, TOP = 28, BOTTOM = 40, HEIGHT = 300;
const short = (v) => String(+v.toPrecision(3));

export default {
  mixins: [followsBox],
  props: { title: String, x: String, y: String, dots: Array, reference: Array, share: Boolean },
  template: `
    <figure class="chart" ref="box">
      <figcaption><span class="name">{{ title }}</span></figcaption>
      <svg :width="width" :height="height" role="img" :aria-label="summary">
        <g v-for="t in view.yTicks"><line :x1="left" :x2="width - 24" :y1="view.y(t)" :y2="view.y(t)" class="grid" />
          <text :x="left - 8" :y="view.y(t) + 4" text-anchor="end">{{ short(t) }}</text></g>
        <text v-for="t in view.xTicks" :x="view.x(t)" :y="height - 24" text-anchor="middle">{{ short(t) }}</text>
        <text :x="(left + width) / 2" :y="height - 6" text-anchor="middle">{{ x }}</text>
        <text :x="left - 56" y="10">{{ y }}</text>
        <g v-if="reference"><line :x1="view.x(reference[1])" :x2="view.x(reference[1])" y1="28" :y2="height - 40" class="cursor" stroke-dasharray="2 3" />
          <text :x="view.x(reference[1]) - 4" y="40" text-anchor="end">{{ reference[0] }}</text></g>
        <path :d="view.edge" class="curve" style="stroke: var(--c2)" />
        <g v-for="d in view.drawn" :class="['dot', { best: d.best, chosen: d.chosen }]">
          <line v-if="d.ends" :x1="d.px" :x2="d.px" :y1="d.ends[0]" :y2="d.ends[1]" />
          <rect v-if="d.chosen" :x="d.px - 6" :y="d.py - 6" width="12" height="12" :transform="'rotate(45 ' + d.px + ' ' + d.py + ')'" />
          <circle v-else :cx="d.px" :cy="d.py" r="5" />
          <text v-if="d.named" :x="d.px + (d.flip ? -10 : 10)" :y="d.py - 6" :text-anchor="d.flip ? 'end' : 'start'">{{ d.name }}</text>
        </g>
      </svg>
      <ul class="legend"><li>◆ chosen</li><li>● frontier</li><li>○ another is at least as good in both</li></ul>
    </figure>`,
  data: () => ({ height: HEIGHT, left: LEFT }),
  computed: {
    view() {
      const xs = [...this.dots.map((d) => d.x), ...(this.reference ? [this.reference[1]] : [])];
      const x1 = Math.max(...xs) * 1.05 || 1, log = !this.share;
      const ends = this.dots.flatMap((d) => [d.y, d.low, d.high]).filter((v) => v !== null && (!log || v > 0));
      const scale = log ? Math.log10 : (v) => v;
      let low = this.share ? 0 : Math.min(...ends) / 1.3, high = this.share ? 1 : Math.max(...ends) * 1.3;
      if (!ends.length) [low, high] = [0.1, 1];
      const x = (v) => LEFT + (v / x1) * (this.width - LEFT - RIGHT);
      const y = (v) => TOP + (1 - (scale(Math.max(v, log ? low : 0)) - scale(low)) / (scale(high) - scale(low))) * (HEIGHT - TOP - BOTTOM);
      const taken = [];
      const drawn = [...this.dots].sort((a, b) => b.chosen - a.chosen).map((d) => {
        const px = x(d.x), py = y(d.y), flip = px > this.width * 0.7;
        const named = !taken.some(([a, b]) => Math.abs(a - px) < 120 && Math.abs(b - py) < 16);
        if (named) taken.push([px, py]);
        return { ...d, px, py, flip, named, ends: d.low !== null && d.high !== null ? [y(d.low), y(d.high)] : null };
      });
      const edge = drawn.filter((d) => d.best).sort((a, b) => a.px - b.px).map((d) => `${d.px.toFixed(1)},${d.py.toFixed(1)}`);
      const powers = Array.from({ length: 24 }, (_, i) => i - 20).flatMap((p) => [1, 2, 5].map((m) => m * 10 ** p));
      return {
        x, y, drawn, edge: edge.length > 1 ? `M${edge.join("L")}` : "",
        xTicks: ticks(0, x1, Math.max(2, Math.floor(this.width / 140))),
        yTicks: log ? powers.filter((v) => v >= low && v <= high) : ticks(low, high, 5),
      };
    },
    summary() {
      return `${this.title}: ${this.dots.map((d) => `${d.name}, ${short(d.x)} ${this.x}, ${short(d.y)}${d.chosen ? ", chosen" : ""}${d.best ? ", frontier" : ""}`).join("; ")}`;
    },
  },
  methods: { short },
};
