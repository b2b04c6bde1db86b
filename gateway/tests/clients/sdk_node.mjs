// The official JavaScript SDKs and Vercel's, unmodified, against a running cortex.
//
//     node sdk_node.mjs ENDPOINT MODEL KIND     KIND: scripted, or real (a model whose words nobody knows)
import assert from "node:assert/strict";
import { deflateSync, crc32 } from "node:zlib";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { join } from "node:path";

const [endpoint, model, kind] = process.argv.slice(2);
const scripted = kind === "scripted";
// The SDKs lie in the folder this is run in, not beside this file.
const require = createRequire(join(process.cwd(), "package.json"));
const load = name => import(pathToFileURL(require.resolve(name)));
const { default: OpenAI } = await load("openai");
const { default: Anthropic } = await load("@anthropic-ai/sdk");
const { generateText, streamText, tool, jsonSchema, stepCountIs, isStepCount } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { createOpenAI } = await load("@ai-sdk/openai");
const { createAnthropic } = await load("@ai-sdk/anthropic");

const steps = stepCountIs ?? isStepCount;
const oa = new OpenAI({ baseURL: endpoint + "/v1", apiKey: "unused", maxRetries: 0 });
const an = new Anthropic({ baseURL: endpoint, apiKey: "unused", maxRetries: 0 });
const GREETING = "Hello 🧑‍🚀, this was scripted.";
const LONGEST = 24;
const user = content => [{ role: "user", content }];
const schema = { type: "object", properties: { city: { type: "string" }, note: { type: "string" } }, required: ["city"] };

function png(width = 8, height = 8) {
  const chunk = (name, data) => {
    const body = Buffer.concat([Buffer.from(name), data]), length = Buffer.alloc(4), sum = Buffer.alloc(4);
    length.writeUInt32BE(data.length); sum.writeUInt32BE(crc32(body));
    return Buffer.concat([length, body, sum]);
  };
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0); head.writeUInt32BE(height, 4); head[8] = 8; head[9] = 2;
  const row = Buffer.concat([Buffer.from([0]), Buffer.alloc(width * 3, 200)]);
  const rows = Buffer.concat(Array(height).fill(row));
  return Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), chunk("IHDR", head), chunk("IDAT", deflateSync(rows)), chunk("IEND", Buffer.alloc(0))]);
}

let failed = 0;
async function check(name, test) {
  try { await test(); console.log("  ok", name); } catch (error) { failed++; console.log("  FAILED", name + ":", error?.stack ?? error); }
}
const only = async (name, test) => scripted ? check(name, test) : undefined;

await check("openai chat", async () => {
  const answer = await oa.chat.completions.create({ model, messages: user("Say hello"), max_tokens: LONGEST });
  assert.ok(answer.choices[0].message.content && answer.usage.total_tokens > 0);
  if (scripted) assert.equal(answer.choices[0].message.content, GREETING);
});
await check("openai chat streams", async () => {
  const stream = oa.chat.completions.stream({ model, messages: user("Say hello"), max_tokens: LONGEST, stream_options: { include_usage: true } });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  const final = await stream.finalChatCompletion();
  assert.ok(text && final.choices[0].message.content === text && final.usage.total_tokens > 0);
});
await only("openai chat tools", async () => {
  const tools = [{ type: "function", function: { name: "weather", parameters: schema } }];
  const messages = user("please use weather");
  const first = (await oa.chat.completions.create({ model, messages, tools })).choices[0].message;
  assert.equal(JSON.parse(first.tool_calls[0].function.arguments).city, "Paris");
  messages.push(first, { role: "tool", tool_call_id: first.tool_calls[0].id, content: "sunny" });
  const second = (await oa.chat.completions.create({ model, messages, tools })).choices[0].message;
  assert.equal(second.content, "The tool said: sunny");
  const stream = oa.chat.completions.stream({ model, messages: user("use weather"), tools });
  assert.equal((await stream.finalChatCompletion()).choices[0].message.tool_calls[0].function.name, "weather");
});
await only("openai chat images", async () => {
  const url = "data:image/png;base64," + png().toString("base64");
  const content = [{ type: "text", text: "What is this?" }, { type: "image_url", image_url: { url } }];
  const answer = await oa.chat.completions.create({ model, messages: [{ role: "user", content }] });
  assert.match(answer.choices[0].message.content, /^1 image/);
});
await check("openai responses", async () => {
  const answer = await oa.responses.create({ model, input: "Say hello", max_output_tokens: LONGEST });
  assert.ok(answer.output_text && answer.usage.total_tokens > 0);
  const kinds = [];
  for await (const event of await oa.responses.create({ model, input: "Say hello", max_output_tokens: LONGEST, stream: true })) kinds.push(event.type);
  assert.equal(kinds[0], "response.created");
  assert.ok(kinds.includes("response.output_text.delta") && /completed|incomplete/.test(kinds.at(-1)), kinds.join());
});
await check("openai failures", async () => {
  await assert.rejects(oa.chat.completions.create({ model: "no-such-model", messages: user("x") }), error => error.status === 404 && error.code === "model_not_found");
  await assert.rejects(oa.embeddings.create({ model, input: "x" }), error => error.status >= 400 && error.status < 500);
  if (!scripted) return;
  await assert.rejects(oa.chat.completions.create({ model, messages: user("fail 429") }), OpenAI.RateLimitError);
  for (const words of ["break", "event error"]) {
    await assert.rejects(async () => { for await (const _ of await oa.chat.completions.create({ model, messages: user(words), stream: true })); }, OpenAI.APIError);
  }
});
await check("openai models", async () => {
  const ids = [];
  for await (const known of oa.models.list()) ids.push(known.id);
  assert.ok(ids.includes(model));
});

await check("anthropic messages", async () => {
  const answer = await an.messages.create({ model, max_tokens: LONGEST, messages: user("Say hello") });
  assert.ok(answer.content[0].text && answer.usage.output_tokens > 0);
});
await check("anthropic messages stream", async () => {
  const stream = an.messages.stream({ model, max_tokens: LONGEST, messages: user("Say hello") });
  let text = "";
  stream.on("text", piece => { text += piece; });
  assert.equal((await stream.finalMessage()).content[0].text, text);
  assert.ok(text);
});
await only("anthropic tools", async () => {
  const tools = [{ name: "weather", input_schema: schema }];
  const stream = an.messages.stream({ model, max_tokens: 99, messages: user("please use weather"), tools });
  const first = await stream.finalMessage();
  const call = first.content.find(block => block.type === "tool_use");
  assert.equal(first.stop_reason, "tool_use");
  assert.equal(call.input.city, "Paris");
  const messages = [...user("please use weather"), { role: "assistant", content: first.content }, { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "sunny" }] }];
  assert.equal((await an.messages.create({ model, max_tokens: 99, messages, tools })).content[0].text, "The tool said: sunny");
});
await only("anthropic images", async () => {
  const source = { type: "base64", media_type: "image/png", data: png().toString("base64") };
  const answer = await an.messages.create({ model, max_tokens: 99, messages: [{ role: "user", content: [{ type: "image", source }, { type: "text", text: "What is this?" }] }] });
  assert.match(answer.content[0].text, /^1 image/);
});
await check("anthropic count_tokens", async () => {
  assert.ok((await an.messages.countTokens({ model, messages: user("one two three") })).input_tokens > 0);
});
await check("anthropic failures", async () => {
  await assert.rejects(an.messages.create({ model: "no-such-model", max_tokens: 9, messages: user("x") }), Anthropic.NotFoundError);
  if (!scripted) return;
  await assert.rejects(an.messages.create({ model, max_tokens: 9, messages: user("fail 429") }), Anthropic.RateLimitError);
  for (const words of ["break", "event error"]) {
    await assert.rejects(an.messages.stream({ model, max_tokens: 9, messages: user(words) }).finalMessage(), Anthropic.APIError);
  }
});

const providers = {
  "openai-compatible": createOpenAICompatible({ name: "cortex", baseURL: endpoint + "/v1", apiKey: "unused", includeUsage: true }).chatModel(model),
  "openai chat": createOpenAI({ baseURL: endpoint + "/v1", apiKey: "unused" }).chat(model),
  "openai responses": createOpenAI({ baseURL: endpoint + "/v1", apiKey: "unused" }).responses(model),
  anthropic: createAnthropic({ baseURL: endpoint + "/v1", apiKey: "unused" })(model),
};
for (const [name, speaker] of Object.entries(providers)) {
  await check(`ai, ${name}: text`, async () => {
    const answer = await generateText({ model: speaker, prompt: "Say hello", maxOutputTokens: LONGEST, maxRetries: 0 });
    assert.ok(answer.text && answer.usage.totalTokens > 0, JSON.stringify(answer.usage));
    if (scripted) assert.equal(answer.text, GREETING);
  });
  await check(`ai, ${name}: stream`, async () => {
    const answer = streamText({ model: speaker, prompt: "Say hello", maxOutputTokens: LONGEST, maxRetries: 0, onError: () => {} });
    let text = "", pieces = 0;
    for await (const piece of answer.textStream) { text += piece; pieces++; }
    assert.ok(text && pieces > 1 && (await answer.usage).outputTokens > 0);
  });
  await only(`ai, ${name}: tools`, async () => {
    let ran = 0;
    const weather = tool({ description: "The weather", inputSchema: jsonSchema(schema), execute: async ({ city }) => { ran++; return "sunny in " + city; } });
    const answer = await generateText({ model: speaker, prompt: "please use weather", tools: { weather }, stopWhen: steps(3), maxRetries: 0 });
    assert.equal(ran, 1);
    assert.match(answer.text, /^The tool said: .*sunny in Paris/s);
    const streamed = streamText({ model: speaker, prompt: "please use weather", tools: { weather }, stopWhen: steps(3), maxRetries: 0, onError: () => {} });
    assert.match(await streamed.text, /sunny in Paris/);
    assert.equal(ran, 2);
  });
  await only(`ai, ${name}: images`, async () => {
    const content = [{ type: "text", text: "What is this?" }, { type: "file", data: png(), mediaType: "image/png" }];
    const answer = await generateText({ model: speaker, messages: [{ role: "user", content }], maxRetries: 0 });
    assert.match(answer.text, /^1 image/);
  });
  await only(`ai, ${name}: failures`, async () => {
    await assert.rejects(generateText({ model: speaker, prompt: "fail 429", maxRetries: 0 }), error => error.statusCode === 429);
    for (const words of ["break", "event error"]) {
      const errors = [];
      const answer = streamText({ model: speaker, prompt: words, maxRetries: 0, onError: ({ error }) => { errors.push(error); } });
      try { for await (const _ of answer.textStream); } catch (error) { errors.push(error); }
      assert.ok(errors.length, words + " was no error");
    }
  });
}
const version = name => { let at = require.resolve(name); for (;;) { at = join(at, ".."); try { const found = require(join(at, "package.json")); if (found.version) return `${name} ${found.version}`; } catch { /* further up */ } } };
console.log(failed ? `  ${failed} failed` : "  all passed", `(${["openai", "@anthropic-ai/sdk", "ai"].map(version).join(", ")})`);
process.exit(failed ? 1 : 0);
