// One setting or question: its label, its control, what it means, what is wrong with it. What is typed stays here until
// it is whole, so nothing that the page shows meanwhile takes it away.
export default {
  emits: ["set", "typed", "enter"],
  props: { name: String, label: String, kind: String, options: Array, value: [String, Boolean], puts: Number, hint: String,
           help: String, error: String, sends: Boolean },
  data() { return { now: this.value }; },
  watch: { puts() { this.now = this.value; } },
  template: `
    <div class="field" :class="kind">
      <output v-if="kind === 'slider'" :for="name">{{ place.label }}</output>
      <label :for="name">{{ label }}</label>
      <select v-if="kind === 'choice'" :id="name" class="pick" v-model="now" @change="send" v-bind="about">
        <option v-for="option in options" :value="option.value">{{ option.label }}</option>
      </select>
      <input v-else-if="kind === 'switch'" :id="name" type="checkbox" v-model="now" @change="send" v-bind="about">
      <input v-else-if="kind === 'slider'" :id="name" type="range" :max="options.length - 1" :value="options.indexOf(place)"
             :aria-valuetext="place.label" @input="now = options[$event.target.value].value; send()" v-bind="about">
      <textarea v-else-if="kind === 'lines'" :id="name" class="pick" rows="3" :placeholder="hint" v-model="now" @change="send" @keydown.enter="press" v-bind="about"></textarea>
      <input v-else :id="name" class="pick" type="text" autocomplete="off" spellcheck="false" :placeholder="hint" v-model="now"
             :list="name + 'list'" @change="send" @input="$emit('typed', now)" @keydown.enter="enter" v-bind="about">
      <datalist v-if="kind === 'text'" :id="name + 'list'"><option v-for="option in options" :value="option.value"></option></datalist>
      <p v-if="help" :id="name + 'help'" class="dim">{{ help }}</p>
      <p v-if="error" :id="name + 'error'" class="bad" role="alert">{{ error }}</p>
    </div>`,
  computed: {
    place() { return this.options.find((option) => option.value === this.now) ?? this.options[0]; },
    about() {
      const ids = [this.help && this.name + "help", this.error && this.name + "error"].filter(Boolean).join(" ");
      return { "aria-describedby": ids || null, "aria-invalid": this.error ? "true" : null };
    },
  },
  methods: {
    send() { this.$emit("set", this.now); },
    enter() { this.send(); this.$emit("enter"); },
    focus() { document.getElementById(this.name).focus(); },
    begin() { if (document.activeElement === document.body) this.focus(); }, // nobody has gone elsewhere meanwhile
    press(event) { // Enter sends, Shift and Enter begin a line; an input method takes its own Enter
      if (!this.sends || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.enter();
    },
  },
};
