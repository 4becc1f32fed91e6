// Node.js imports files by their whole names.
export default { output: { path: "hey-api", module: { extension: ".js" } } };
