// A text as tokens, and what could stand at one of them. Temperature, top-k and top-p are computed here, from the
// likeliest tokens and the levels of all others, in llama.cpp's order: top-k, top-p, then the temperature.
const percent = (p) => (p >= 0.001 ? (100 * p).toFixed(1) : (100 * p).toPrecision(1)) + " %";
const BANDS = [0.5, 0.1, 0.01, 0.001]; // probabilities where a darker band begins

// levels: [how many tokens, log-probability], the likeliest first. The weight of each level in a draw.
export function weights(levels, temperature, topK, topP) {
  if (temperature <= 0) return levels.map((_, i) => (i ? 0 : 1));
  let before = 0;
  let counts = levels.map(([n]) => {
    const kept = topK > 0 ? Math.min(n, Math.max(0, topK - before)) : n;
    before += n;
    return kept;
  });
  if (topP < 1) {
    const masses = levels.map(([, logp], i) => counts[i] * Math.exp(logp));
    const wanted = topP * masses.reduce((a, b) => a + b, 0);
    let mass = 0;
    counts = counts.map((n, i) => {
      const kept = Math.ceil((wanted - mass) / Math.max(Math.exp(levels[i][1]), 1e-300) - 1e-9);
      mass += masses[i];
      return i ? Math.min(n, Math.max(0, kept)) : 1;
    });
  }
  return levels.map(([, logp], i) => counts[i] * Math.exp((logp - levels[0][1]) / temperature));
}

export default {
  props: { tokens: Array, place: Object },
  emits: ["place", "choice"],
  data: () => ({ temperature: 1, topK: 0, topP: 1, count: 12 }),
  template: `
    <div class="next-token">
      <div class="tokens" role="group" aria-label="The text as tokens; arrow keys move along it" @keydown="move" ref="tokens">
        <button v-for="(token, at) in tokens" type="button" :class="chip(token, at)" :aria-label="spoken(token, at)"
                :aria-pressed="at === shownAt" :tabindex="at === shownAt ? 0 : -1" @click="look(at)">
          <span class="text">{{ token.text }}</span><small>{{ token.logprob === null ? "–" : short(token.logprob) }}</small>
          <small v-if="token.gain !== null" :class="token.gain < 0 ? 'bad' : 'good'">{{ signed(token.gain) }}</small>
        </button>
        <button v-if="tokens.length" type="button" class="token after" :aria-pressed="shownAt === tokens.length" @click="look(tokens.length)"
                :tabindex="shownAt === tokens.length ? 0 : -1" aria-label="What comes after the text"><span class="text">…</span><small>next</small></button>
      </div>
      <div v-if="place" class="columns">
        <div>
          <h3 aria-live="polite">{{ heading }}</h3>
          <p class="dim" v-if="place.top.length">Entropy {{ place.entropy.toFixed(2) }} nats: as unsure as between {{ choices }} equally
            likely tokens. {{ named(shownToken) }}</p>
          <p v-else class="dim">Nothing stands before this token, so nothing is predicted here.</p>
          <div v-if="place.top.length" class="table" tabindex="0" role="region" aria-label="The likeliest tokens">
            <table>
              <caption>The likeliest tokens</caption>
              <thead><tr><th scope="col" class="number">rank</th><th scope="col">token</th><th scope="col" class="number">probability</th>
                <th scope="col" class="number">drawn</th></tr></thead>
              <tbody><tr v-for="(entry, i) in place.top">
                <td class="number">{{ entry.rank }}</td>
                <th scope="row"><button type="button" class="choice" @click="choose(entry)" :aria-label="'Continue with ' + entry.text">{{ entry.text }}</button></th>
                <td class="number">{{ percent(entry.probability) }}</td>
                <td class="number">{{ drawn[i] ? percent(drawn[i]) : "never" }}</td></tr></tbody>
            </table>
          </div>
        </div>
        <div v-if="place.top.length" class="sliders">
          <h3>How a token is drawn</h3>
          <label>Temperature <span class="value">{{ temperature ? temperature.toFixed(2) : "0: the likeliest" }}</span>
            <input type="range" min="0" max="2" step="0.05" v-model.number="temperature"></label>
          <label>Top-k <span class="value">{{ topK || "all tokens" }}</span><input type="range" min="0" max="200" step="1" v-model.number="topK"></label>
          <label>Top-p <span class="value">{{ topP.toFixed(2) }}</span><input type="range" min="0.05" max="1" step="0.05" v-model.number="topP"></label>
          <label>Tokens to write <span class="value">{{ count }}</span><input type="range" min="0" max="64" step="1" v-model.number="count"></label>
          <p class="dim">Any of the other {{ others.toLocaleString("en") }} tokens: {{ percent(rest) }}. Choose a token to continue with it.</p>
        </div>
      </div>
    </div>`,
  computed: {
    shownAt() { return this.place ? this.place.at : -1; },
    shownToken() { return this.tokens[this.shownAt]; },
    heading() { return this.shownToken ? `At token ${this.shownAt}: “${this.shownToken.text}”` : "After the text"; },
    choices() { const n = Math.exp(this.place.entropy); return n < 10 ? n.toFixed(1) : Math.round(n).toLocaleString("en"); },
    levels() { return [...this.place.top.map((entry) => [1, entry.logprob]), ...this.place.tail]; },
    others() { return this.place.tail.reduce((sum, [n]) => sum + n, 0); },
    all() { const w = weights(this.levels, this.temperature, this.topK, this.topP); const sum = w.reduce((a, b) => a + b, 0); return w.map((x) => x / sum); },
    drawn() { return this.all.slice(0, this.place.top.length); },
    rest() { return this.all.slice(this.place.top.length).reduce((a, b) => a + b, 0); },
  },
  methods: {
    percent,
    short: (logprob) => (Math.exp(logprob) >= 0.01 ? Math.round(100 * Math.exp(logprob)) + "%" : Math.exp(logprob) >= 0.0001 ? (100 * Math.exp(logprob)).toPrecision(1) + "%" : "<.01%"),
    signed: (gain) => (gain < 0 ? "−" : "+") + Math.abs(gain).toFixed(1),
    chip(token, at) {
      const band = token.logprob === null ? "none" : BANDS.findIndex((p) => Math.exp(token.logprob) >= p);
      return ["token", "band-" + (band === -1 ? BANDS.length : band), { special: token.special, piece: token.whole }];
    },
    named(token) {
      return !token ? "" : `The text has ${percent(Math.exp(token.logprob))} here, rank ${token.rank.toLocaleString("en")}.`;
    },
    spoken(token, at) {
      const piece = token.whole ? `, a piece of ${token.whole}` : "";
      const figures = token.logprob === null ? "not predicted" : `${percent(Math.exp(token.logprob))}, rank ${token.rank}, entropy ${token.entropy.toFixed(1)} nats`;
      const gain = token.gain === null ? "" : `, other model ${this.signed(token.gain)} nats`;
      return `Token ${at}: ${token.text}${piece}, ${figures}${gain}`;
    },
    look(at) { this.$emit("place", at); },
    choose(entry) {
      this.$emit("choice", { at: this.shownAt, rank: entry.rank, temperature: this.temperature, top_k: this.topK, top_p: this.topP, count: this.count });
    },
    move(event) {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
      if (!step) return;
      event.preventDefault();
      const at = Math.min(Math.max(0, this.shownAt + step), this.tokens.length);
      this.look(at);
      this.$refs.tokens.children[at].focus();
    },
  },
};
