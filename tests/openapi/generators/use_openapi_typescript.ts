// Uses the types that openapi-typescript makes, with openapi-fetch, on an empty database: URL KEY.
import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type User = components["schemas"]["User"];
type Problem = components["schemas"]["Problem"];

const [, , url, key] = process.argv;
const api = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });
const asItIs = (body: string | undefined) => body;

const created = await api.POST("/api/v1/users", { body: { email: "ada@example.com" } });
assert.equal(created.response.status, 201);
const ada: User = created.data!;
const name: string | null = ada.name;
assert.equal(name, null);

const taken = await api.POST("/api/v1/users", { body: { email: "ADA@example.com", name: null } });
const problem: Problem = taken.error!;
assert.equal(problem.type, "urn:problem:users-api:email-taken");
const invalid = await api.POST("/api/v1/users", { body: { email: "nobody" } });
assert.deepEqual(invalid.error?.errors?.[0]?.loc, ["body", "email"]);

const path = { id: ada.id };
const changed = await api.PATCH("/api/v1/users/{id}", { params: { path }, body: { name: "Ada" } });
assert.equal(changed.data?.name, "Ada");
const etag = changed.response.headers.get("etag")!;
const cleared = await api.PATCH("/api/v1/users/{id}", {
  params: { path, header: { "If-Match": etag } },
  body: { name: null },
});
assert.equal(cleared.data?.name, null);
const stale = await api.DELETE("/api/v1/users/{id}", { params: { path, header: { "If-Match": etag } } });
assert.equal(stale.error?.status, 412);

const read = await api.GET("/api/v1/users/{id}", { params: { path } });
assert.deepEqual(read.data, cleared.data);

const ndjson = '{"email": "grace@example.com", "name": "Grace"}\n{"email": "nobody"}\n';
const imported = await api.POST("/api/v1/users/import", {
  body: ndjson,
  bodySerializer: asItIs,
  headers: { "Content-Type": "application/x-ndjson" },
  parseAs: "text",
});
const report: string = imported.data!;
assert.match(report, /"complete":true,"lines":2,"created":1,.*"refused":1/);
const csv = await api.POST("/api/v1/users/import", {
  params: { query: { on_conflict: "skip" } },
  body: "email,name\ngrace@example.com,G\nalan@example.com,Alan\n",
  bodySerializer: asItIs,
  headers: { "Content-Type": "text/csv" },
  parseAs: "text",
});
assert.match(csv.data!, /"created":1,"updated":0,"skipped":1/);

const exported = await api.GET("/api/v1/users/export", { params: { query: { format: "ndjson" } }, parseAs: "text" });
assert.deepEqual(
  exported.data!.trimEnd().split("\n").map((line) => (JSON.parse(line) as User).email),
  ["ada@example.com", "grace@example.com", "alan@example.com"],
);

const page = await api.GET("/api/v1/users", { params: { query: { after: ada.id, limit: 1 } } });
assert.deepEqual(page.data?.map((user) => user.name), ["Grace"]);
assert.match(page.response.headers.get("link")!, /rel="next"/);
const found = await api.GET("/api/v1/users", { params: { query: { q: "AL" } } });
assert.equal(found.data?.[0]?.email, "alan@example.com");

const deleted = await api.DELETE("/api/v1/users/{id}", { params: { path } });
assert.equal(deleted.response.status, 204);
const gone = await api.GET("/api/v1/users/{id}", { params: { path } });
assert.equal(gone.error?.detail, "User not found");

const health = await api.GET("/health");
const status: "healthy" | undefined = health.data?.status;
assert.equal(status, "healthy");
console.log("done");
