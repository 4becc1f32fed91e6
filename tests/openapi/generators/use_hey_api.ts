// Uses the client that @hey-api/openapi-ts makes, on an empty database: URL KEY.
import assert from "node:assert/strict";
import { client } from "./hey-api/client.gen.js";
import {
  createUser,
  deleteUser,
  exportUsers,
  getHealth,
  getUser,
  importUsers,
  listUsers,
  updateUser,
  type Problem,
  type User,
} from "./hey-api/index.js";

const [, , url, key] = process.argv;
client.setConfig({ baseUrl: url, auth: key });

const created = await createUser({ body: { email: "ada@example.com" } });
assert.equal(created.response?.status, 201);
const ada: User = created.data!;
const name: string | null = ada.name;
assert.equal(name, null);

const taken = await createUser({ body: { email: "ADA@example.com", name: null } });
const problem: Problem = taken.error!;
assert.equal(problem.type, "urn:problem:users-api:email-taken");
const invalid = await createUser({ body: { email: "nobody" } });
assert.deepEqual(invalid.error?.errors?.[0]?.loc, ["body", "email"]);

const path = { id: ada.id };
const changed = await updateUser({ path, body: { name: "Ada" } });
assert.equal(changed.data?.name, "Ada");
const etag = changed.response!.headers.get("etag")!;
const cleared = await updateUser({ path, headers: { "If-Match": etag }, body: { name: null } });
assert.equal(cleared.data?.name, null);
const stale = await deleteUser({ path, headers: { "If-Match": etag } });
assert.equal(stale.error?.status, 412);

const read = await getUser({ path });
assert.deepEqual(read.data, cleared.data);

const ndjson = '{"email": "grace@example.com", "name": "Grace"}\n{"email": "nobody"}\n';
const imported = await importUsers({ body: new Blob([ndjson]) });
const report: Blob = imported.data!;
assert.match(await report.text(), /"complete":true,"lines":2,"created":1,.*"refused":1/);
const csv = await importUsers({
  query: { on_conflict: "skip" },
  body: new Blob(["email,name\ngrace@example.com,G\nalan@example.com,Alan\n"]),
  headers: { "Content-Type": "text/csv" },
});
assert.match(await csv.data!.text(), /"created":1,"updated":0,"skipped":1/);

const exported = await exportUsers({ query: { format: "ndjson" } });
const lines = (await exported.data!.text()).trimEnd().split("\n");
assert.deepEqual(
  lines.map((line) => (JSON.parse(line) as User).email),
  ["ada@example.com", "grace@example.com", "alan@example.com"],
);

const table = await exportUsers({ query: { format: "csv" }, parseAs: "blob" });
assert.match(await table.data!.text(), /^id,email,name,created_at,updated_at\n/);

const page = await listUsers({ query: { after: ada.id, limit: 1 } });
assert.deepEqual(page.data?.map((user) => user.name), ["Grace"]);
assert.match(page.response!.headers.get("link")!, /rel="next"/);
const found = await listUsers({ query: { q: "AL" } });
assert.equal(found.data?.[0]?.email, "alan@example.com");

const deleted = await deleteUser({ path });
assert.equal(deleted.response?.status, 204);
const gone = await getUser({ path });
assert.equal(gone.error?.detail, "User not found");

const health = await getHealth();
const status: "healthy" | undefined = health.data?.status;
assert.equal(status, "healthy");
console.log("done");
