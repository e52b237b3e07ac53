// A chart of growing curves, drawn as SVG. A point is [step, tokens, seconds, value, low, high]; a series has a colour and
// a dash of its own, and an interval is an area. What arrives is numbers only.
import { followsBox, ticks } from "axes";

const AXES = { steps: 0, tokens: 1, time: 2, energy: 2 };
const DASHES = ["", "7 4", "2 3", "9 3 2 3", "12 5", "4 2 1 2"];
const LEFT = 64, RIGHT = 16, TOP = 10, BOTTOM = 28;

const si = (v) => {
  for (const [size, unit] of [[1e9, " B"], [1e6, " M"], [1e3, " k"]])
    if (Math.abs(v) >= size * 0.9995) return +(v / size).toPrecision(3) + unit;
  return String(+v.toPrecision(3));
};
const clock = (s) => (s < 60 ? `${+s.toPrecision(2)} s` : s < 3600 ? `${+(s / 60).toPrecision(3)} min` : `${+(s / 3600).toPrecision(3)} h`);
const FORMATS = { steps: si, tokens: si, time: clock, energy: (v) => `${+v.toPrecision(3)} Wh` };
const FLATTEST = 0.02; // of its value, that the range of a curve is drawn over
const short = (v, digits = 4) => (Math.abs(v) >= 10000 ? si(v) : String(+v.toPrecision(digits)));

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const m of [1, 2, 5]) if (m * 10 ** power >= low && m * 10 ** power <= high) found.push(m * 10 ** power);
  return found.length > 1 ? found : [low, high];
}

export default {
  mixins: [followsBox],
  props: { title: String, axes: Array, height: Number, series: Array },
  template: `
    <figure class="chart" ref="box">
      <figcaption>
        <span class="name">{{ title }}</span>
        <label v-if="axes.length > 1">by <select class="pick" v-model="axis"><option v-for="a in axes">{{ a }}</option></select></label>
        <label v-if="axes.length > 1"><input type="checkbox" v-model="log"> logarithmic</label>
      </figcaption>
      <svg :width="width" :height="height" role="img" tabindex="0" :aria-label="summary"
           @mousemove="point" @mouseleave="cursor = null" @blur="cursor = null"
           @keydown.left.prevent="move(-1)" @keydown.right.prevent="move(1)">
        <g v-for="t in view.yTicks"><line :x1="left" :x2="width - 16" :y1="view.y(t)" :y2="view.y(t)" class="grid" />
          <text :x="left - 8" :y="view.y(t) + 4" text-anchor="end">{{ short(t, view.digits) }}</text></g>
        <text v-for="t in view.xTicks" :x="view.x(t)" :y="height - 8" text-anchor="middle">{{ format(t) }}</text>
        <template v-for="s in view.drawn">
          <path :d="s.area" class="area" :style="{ fill: s.colour }" />
          <path :d="s.line" class="curve" :style="{ stroke: s.colour, strokeWidth: s.dense ? 1 : 2 }" :stroke-dasharray="s.dash" />
          <circle v-if="s.dot" :cx="s.dot[0]" :cy="s.dot[1]" r="3" :style="{ fill: s.colour }" />
        </template>
        <line v-if="cursor !== null" :x1="view.x(cursor)" :x2="view.x(cursor)" y1="10" :y2="height - 28" class="cursor" />
        <text v-if="!view.drawn.length" :x="width / 2" :y="height / 2" text-anchor="middle">no values yet</text>
      </svg>
      <ul class="legend" :aria-live="cursor === null ? 'off' : 'polite'">
        <li v-for="s in legend"><svg width="28" height="10" aria-hidden="true"><line x1="0" x2="28" y1="5" y2="5"
          class="curve" :style="{ stroke: s.colour }" :stroke-dasharray="s.dash" /></svg>{{ s.text }}</li>
        <li v-if="cursor !== null" class="dim">at {{ format(cursor) }} {{ axis }}</li>
      </ul>
    </figure>`,
  data() {
    return { axis: this.axes[0], log: false, cursor: null, version: 0 };
  },
  created() {
    this.points = this.series.map(() => []);
    this.watts = [];
  },
  computed: {
    left: () => LEFT,
    format() {
      return FORMATS[this.axis];
    },
    view() {
      this.version; // the points are not watched one by one
      const all = this.points.map((points, i) => points.map((p) => [this.at(p, i), p[3], p[4], p[5]]));
      const drawn = all.map((points, i) => [points, i]).filter(([points]) => points.length);
      const xs = drawn.flatMap(([points]) => [points[0][0], points[points.length - 1][0]]);
      const positive = (v) => v !== null && v !== undefined && (!this.log || v > 0);
      const ys = drawn.flatMap(([points]) => points.flatMap((p) => p.slice(1).filter(positive)));
      const x0 = Math.min(...xs, 0), x1 = Math.max(...xs, -Infinity);
      let y0 = ys.reduce((a, b) => Math.min(a, b), Infinity), y1 = ys.reduce((a, b) => Math.max(a, b), -Infinity);
      if (!ys.length) [y0, y1] = [1, 2];
      const flat = this.log ? 0 : Math.max(0, Math.max(Math.abs(y0), Math.abs(y1)) * FLATTEST - (y1 - y0)) / 2;
      [y0, y1] = [y0 - flat, y1 + flat];
      const pad = this.log ? 0 : (y1 - y0 || 1) * 0.04;
      if (this.log && y0 === y1) [y0, y1] = [y0 / 2, y1 * 2];
      const scale = this.log ? Math.log10 : (v) => v;
      const low = scale(y0) - pad, high = scale(y1) + pad;
      const inner = this.width - LEFT - RIGHT, tall = this.height - TOP - BOTTOM;
      const x = (v) => LEFT + (x1 > x0 ? ((v - x0) / (x1 - x0)) * inner : 0);
      const y = (v) => TOP + tall - ((scale(v) - low) / (high - low || 1)) * tall;
      const path = (points, k) => points.map((p) => `${x(p[0]).toFixed(1)},${y(p[k]).toFixed(1)}`);
      const curves = drawn.map(([points, i]) => {
        const seen = points.filter((p) => positive(p[1])), band = points.filter((p) => positive(p[2]) && positive(p[3]));
        const area = band.length > 1 ? `M${path(band, 3).join("L")}L${path(band, 2).reverse().join("L")}Z` : "";
        const line = seen.length > 1 ? `M${path(seen, 1).join("L")}` : "";
        return { dense: seen.length > 300, area, line, dot: seen.length === 1 ? [x(seen[0][0]), y(seen[0][1])] : null, ...this.look(i) };
      });
      const yTicks = this.log ? logTicks(y0, y1) : ticks(low, high, this.height > 200 ? 5 : 4);
      const digits = Math.max(4, Math.ceil(Math.log10(Math.max(...yTicks.map(Math.abs)) / Math.abs(yTicks[1] - yTicks[0] || 1))) + 1);
      const across = Math.max(2, Math.floor(inner / 110));
      return {
        x, y, x0, x1, drawn: curves.reverse(), // the first on top
        xTicks: curves.length ? (x1 > x0 ? ticks(x0, x1, across) : [x0]) : [],
        yTicks, digits,
      };
    },
    legend() {
      this.version;
      return this.series.map((name, i) => ({ ...this.look(i), text: `${name} ${this.value(i)}` }));
    },
    summary() {
      return `${this.title}: ${this.legend.map((s) => s.text).join("; ")}. Arrow keys move along the curves.`;
    },
  },
  methods: {
    short,
    grow(updates) {
      for (const [i, start, points, watts] of updates) {
        this.points[i].splice(start, Infinity, ...points);
        this.watts[i] = watts;
      }
      this.version++;
    },
    at(p, i) {
      const value = p[AXES[this.axis]];
      return this.axis === "energy" ? (value * (this.watts[i] ?? 0)) / 3600 : value;
    },
    look(i) {
      return { colour: `var(--c${i % 6})`, dash: DASHES[i % DASHES.length] };
    },
    value(i) {
      const points = this.points[i];
      if (!points.length) return "–";
      let p = points[points.length - 1];
      if (this.cursor !== null)
        p = points.reduce((a, b) => (Math.abs(this.at(b, i) - this.cursor) < Math.abs(this.at(a, i) - this.cursor) ? b : a));
      return short(p[3]) + (p[4] !== null && p[4] !== undefined ? ` (${short(p[4])} – ${short(p[5])})` : "");
    },
    point(event) {
      if (!this.view.drawn.length) return;
      const { x0, x1 } = this.view, inner = this.width - LEFT - RIGHT;
      this.cursor = Math.min(x1, Math.max(x0, x0 + ((event.offsetX - LEFT) / inner) * (x1 - x0)));
    },
    move(by) {
      if (!this.view.drawn.length) return;
      const { x0, x1 } = this.view, from = this.cursor ?? (by > 0 ? x0 : x1);
      this.cursor = Math.min(x1, Math.max(x0, from + (by * (x1 - x0)) / 50));
    },
  },
};
