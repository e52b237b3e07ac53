// What both kinds of charts share: the ticks of an axis, and a width that follows the box that they are in.
export function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
  const first = Math.ceil(low / step), last = Math.floor(high / step + 1e-6);
  return Array.from({ length: last - first + 1 }, (_, i) => +((first + i) * step).toPrecision(12));
}

export const followsBox = {
  data: () => ({ width: 600 }),
  mounted() {
    this.observer = new ResizeObserver(([entry]) => (this.width = Math.max(240, Math.floor(entry.contentRect.width))));
    this.observer.observe(this.$refs.box);
  },
  beforeUnmount() {
    this.observer.disconnect();
  },
};
