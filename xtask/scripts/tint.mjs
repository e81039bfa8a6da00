// node tint.mjs FOLDER: compiles every .wgsl file of the folder with Tint, as Chromium does, without a GPU.
// Dawn's null backend validates modules and pipelines and runs nothing.

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { create, globals } from "webgpu";

Object.assign(globalThis, globals);
const [folder] = process.argv.slice(2);
const gpu = create(["backend=null"]); // It has to outlive the device.
const adapter = await gpu.requestAdapter();
// A kernel of all options at once has more storage buffers than WebGPU promises.
const { maxStorageBuffersPerShaderStage } = adapter.limits;
const device = await adapter.requestDevice({ requiredLimits: { maxStorageBuffersPerShaderStage } });

const files = readdirSync(folder).filter((name) => name.endsWith(".wgsl")).sort();
let failed = 0;
for (const file of files) {
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code: readFileSync(join(folder, file), "utf8") });
  const { messages } = await module.getCompilationInfo();
  const said = messages.map(({ type, lineNum, message }) => `${type} in line ${lineNum}: ${message}`);
  try {
    await device.createComputePipelineAsync({ layout: "auto", compute: { module } });
  } catch (error) {
    said.push(error.message);
  }
  const error = await device.popErrorScope();
  if (error) said.push(error.message);
  if (said.length > 0) {
    failed += 1;
    console.log(`${file}: ${said.join("\n")}`);
  }
}
console.log(`Tint: ${files.length - failed} passed, ${failed} failed`);
device.destroy();
process.exitCode = failed > 0 || files.length === 0 ? 1 : 0;
