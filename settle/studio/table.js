// A table: text only, so nothing that a name holds becomes part of the page. On a narrow screen each row is a card.
const cell = (value) => (typeof value === "string" ? { text: value } : value);
const rank = (value) => cell(value).rank ?? cell(value).text;
const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
export default {
  emits: ["act", "chosen"],
  props: { caption: String, columns: Array, numbers: Array, rows: Array, keys: Array, empty: String, sorts: Boolean, chooses: Boolean },
  data() { return { by: -1, down: false, chosen: [] }; },
  watch: {
    keys() { this.put(this.chosen.filter((key) => this.keys.includes(key))); },
  },
  template: `
    <div class="table" tabindex="0" role="region" :aria-label="caption">
      <table role="table">
        <caption>{{ caption }}</caption>
        <thead role="rowgroup"><tr role="row">
          <td v-if="chooses" role="cell"><input type="checkbox" aria-label="Choose all" :checked="rows.length && chosen.length === rows.length"
            @change="put($event.target.checked ? [...keys] : [])"></td>
          <component :is="name ? 'th' : 'td'" v-for="(name, i) in columns" :scope="name ? 'col' : null" :role="name ? 'columnheader' : 'cell'" :class="{ number: numbers[i] }"
              :aria-sort="by === i ? (down ? 'descending' : 'ascending') : null">
            <button v-if="sorts && name" type="button" class="sorter" @click="sort(i)">{{ name }}{{ by === i ? (down ? " ↓" : " ↑") : "" }}</button>
            <template v-else>{{ name }}</template>
          </component></tr></thead>
        <tbody role="rowgroup">
          <tr v-for="at in order" role="row" :key="keys[at] ?? at">
            <td v-if="chooses" role="cell" class="choice"><input type="checkbox" :aria-label="'Choose ' + cell(rows[at][0]).text" :value="keys[at]"
              :checked="chosen.includes(keys[at])" @change="toggle(keys[at])"></td>
            <component :is="i ? 'td' : 'th'" v-for="(value, i) in rows[at]" :scope="i ? null : 'row'" :role="i ? 'cell' : 'rowheader'"
                       :data-label="columns[i]" :class="[cell(value).tone, { number: numbers[i] }]">
              <a v-if="cell(value).href" :href="cell(value).href">{{ cell(value).text }}</a>
              <template v-else>{{ cell(value).text }}</template>
              <span v-if="cell(value).acts" class="acts">
                <button v-for="name in cell(value).acts" type="button" :aria-label="name + ' ' + cell(rows[at][0]).text"
                        @click="$emit('act', [keys[at], name])">{{ name }}</button></span>
            </component>
          </tr>
        </tbody>
      </table>
      <p v-if="!rows.length" class="empty">{{ empty }}</p>
    </div>`,
  computed: {
    order() {
      const places = this.rows.map((_, at) => at);
      if (this.by < 0) return places;
      const sign = this.down ? -1 : 1;
      return places.sort((a, b) => sign * compare(rank(this.rows[a][this.by]), rank(this.rows[b][this.by])));
    },
  },
  methods: {
    cell,
    sort(i) { [this.by, this.down] = this.by !== i ? [i, false] : this.down ? [-1, false] : [i, true]; },
    toggle(key) { this.put(this.chosen.includes(key) ? this.chosen.filter((one) => one !== key) : [...this.chosen, key]); },
    put(keys) {
      if (keys.join() === this.chosen.join()) return;
      this.chosen = keys;
      this.$emit("chosen", keys);
    },
  },
};
