// Files that are dropped or chosen, sent as they are, one after the other.
export default {
  props: { label: String },
  emits: ["stored", "refused"],
  data() { return { over: false, now: "" }; },
  template: `
    <div class="drop" :class="{ over }" @dragover.prevent="over = true" @dragleave="over = false"
         @drop.prevent="over = false; send($event.dataTransfer.files)">
      <label>{{ label }} <input type="file" multiple @change="send($event.target.files)"></label>
      <p class="dim" role="status">{{ now }}</p>
    </div>`,
  methods: {
    async send(files) {
      for (const file of files) {
        this.now = "storing " + file.name;
        const answer = await fetch("/uploads?name=" + encodeURIComponent(file.name), { method: "PUT", body: file }).catch(() => null);
        const told = answer ? await answer.json() : { error: "the studio was not reached; is it still running?" };
        this.$emit(told.error ? "refused" : "stored", told.error || told.path);
        this.now = told.error ? "" : file.name + " is stored";
      }
    },
  },
};
