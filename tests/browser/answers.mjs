// What a test asks of qia3.mjs, in a page or in Node: the answer to each question [call, ...arguments], {error} where it is refused.

async function answered(model, [call, ...given]) {
  const answer = model[call](...given);
  if (!call.startsWith("generate")) return answer;
  const pieces = [];
  for await (const piece of answer) pieces.push(piece);
  return pieces;
}

const plain = (value) => (ArrayBuffer.isView(value) ? Array.from(value) : (value ?? null));
const told = (error) => ({ error: `${error.name}: ${error.message}` });

/** @param open opens the bundle  @param questions after which it is closed */
export async function answers(open, questions) {
  let progress = null;
  try {
    const model = await open({ progress: (now) => (progress = now) });
    const found = [];
    for (const question of questions) found.push(await answered(model, question).then(plain, told));
    const facts = { name: model.name, device: model.device, adapters: model.adapters, progress };
    await model.close();
    return { facts, answers: found };
  } catch (error) {
    return told(error);
  }
}
