// A message, and what can be done with it. Its text comes as a tree of few known elements: no HTML is read anywhere.
import { h } from "vue";

const Nodes = (props) => props.nodes.map(made);
Nodes.props = ["nodes"];
function made(node) {
  if (typeof node === "string") return node;
  const [tag, attributes, inner] = node;
  if (tag === "listing") return h("div", { class: "listing" }, [
    h("div", { class: "head" }, [h("span", attributes.language), h(Copy, { text: inner[0], what: "Copy code" })]),
    h("pre", { tabindex: 0 }, h("code", inner.map(made)))]); // a copy: Vue writes into the list that it is given
  if (tag === "table") return h("div", { class: "scrolls", tabindex: 0, role: "region", "aria-label": "Table" }, h(tag, inner.map(made)));
  return h(tag, attributes, inner.map(made));
}
const Copy = {
  props: { text: String, what: String },
  data() { return { now: this.what }; },
  template: `<button type="button" @click="copy">{{ now }}</button>`,
  methods: {
    async copy() {
      this.now = await navigator.clipboard.writeText(this.text).then(() => "Copied", () => "The browser does not allow it");
      setTimeout(() => (this.now = this.what), 2000);
    },
  },
};
export default {
  components: { Nodes, Copy },
  emits: ["act"],
  // acts: [name, label]; edit: [name, label, label of the text, label of its end]; versions: indices, of which `at` is one
  props: { head: String, text: String, nodes: Array, mine: Boolean, acts: Array, edit: Array, versions: Array, at: Number },
  data() { return { draft: null }; },
  template: `
    <div class="said" :class="{ mine }">
      <h2>{{ head }}</h2>
      <form v-if="draft !== null" @submit.prevent="save" @keydown.esc="end">
        <textarea ref="draft" class="pick" rows="4" :aria-label="edit[2]" v-model="draft" @keydown.ctrl.enter="save"></textarea>
        <div class="acts"><button type="submit">{{ edit[3] }}</button><button type="button" @click="end">Cancel</button></div>
      </form>
      <template v-else>
        <div class="message" :class="{ mine }"><Nodes :nodes="nodes" /></div>
        <div class="acts" v-if="edit.length">
          <span v-if="versions.length > 1"><button type="button" aria-label="Version before" @click="turn(-1)">‹</button>
            {{ versions.indexOf(at) + 1 }} of {{ versions.length }} <button type="button" aria-label="Next version" @click="turn(1)">›</button></span>
          <Copy v-if="!mine" :text="text" what="Copy" />
          <button v-for="[name, label] in acts" type="button" :class="name" @click="$emit('act', [name, ''])">{{ label }}</button>
          <button type="button" ref="edit" @click="begin">{{ edit[1] }}</button>
        </div>
      </template>
    </div>`,
  methods: {
    turn(by) { this.$emit("act", ["show", this.versions.at((this.versions.indexOf(this.at) + by) % this.versions.length)]); },
    begin() {
      this.draft = this.text;
      this.$nextTick(() => this.$refs.draft.focus());
    },
    save() { this.$emit("act", [this.edit[0], this.draft]); this.end(); },
    end() { // the keyboard goes on where it was
      this.draft = null;
      this.$nextTick(() => this.$refs.edit?.focus());
    },
  },
};
