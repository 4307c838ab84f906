// What web/ imports and its types are not checked of.
declare module "onnxruntime-web/wasm";
declare module "onnxruntime-web/webgpu";
declare module "@huggingface/tokenizers";
declare module "node:fs/promises";
