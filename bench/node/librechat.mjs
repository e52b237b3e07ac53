// One turn through LibreChat's engine: node librechat.mjs BASE_URL KEY MODEL, in a folder with @librechat/agents.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const require = createRequire(process.cwd() + '/');
const load = async (name) => import(pathToFileURL(require.resolve(name)).href);
const { Run, Providers, GraphEvents, ChatModelStreamHandler } = await load('@librechat/agents');
const { HumanMessage } = await load('@langchain/core/messages');

const [baseURL, apiKey, model] = process.argv.slice(2);
const llmConfig = {
  provider: Providers.OPENAI,
  model,
  apiKey,
  configuration: { baseURL, apiKey },
  streaming: true,
  streamUsage: true,
  maxTokens: 30,
};
const run = await Run.create({
  runId: 'bench',
  graphConfig: { type: 'standard', llmConfig, instructions: 'You are friendly.' },
  returnContent: true,
  customHandlers: { [GraphEvents.CHAT_MODEL_STREAM]: new ChatModelStreamHandler() },
});
const said = await run.processStream(
  { messages: [new HumanMessage('Say hello.')] },
  { configurable: { thread_id: 'bench' }, version: 'v2', streamMode: 'values' },
);
if (!said?.[0]?.text) throw new Error('no text came');
console.log(said[0].text);
