// A table: text only, so nothing that a name holds becomes part of the page.
const cell = (value) => (typeof value === "string" ? { text: value } : value);
export default {
  props: { caption: String, columns: Array, numbers: Array, rows: Array, empty: String },
  template: `
    <div class="table" tabindex="0" role="region" :aria-label="caption">
      <table>
        <caption>{{ caption }}</caption>
        <thead><tr><th v-for="(name, i) in columns" scope="col" :class="{ number: numbers[i] }">{{ name }}</th></tr></thead>
        <tbody>
          <tr v-for="row in rows">
            <component :is="i ? 'td' : 'th'" v-for="(value, i) in row" :scope="i ? null : 'row'"
                       :class="[cell(value).tone, { number: numbers[i] }]">
              <a v-if="cell(value).href" :href="cell(value).href">{{ cell(value).text }}</a>
              <template v-else>{{ cell(value).text }}</template>
            </component>
          </tr>
        </tbody>
      </table>
      <p v-if="!rows.length" class="empty">{{ empty }}</p>
    </div>`,
  methods: { cell },
};
