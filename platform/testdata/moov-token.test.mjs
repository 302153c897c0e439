// These tests run moov-token.js in fake time:
//
//	node --test testdata/moov-token.test.mjs
//
// TestPageModuleInNode runs them too. The environment variable MODULE names another
// file to test.

import { test } from "node:test";
import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";

const { moovToken } = await import(process.env.MODULE ? pathToFileURL(process.env.MODULE) : "../moov-token.js");

const SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;

// Time has two clocks: Date.now() reads wall, and timers use now. While the machine
// sleeps, only wall advances.
class Time {
	wall = Date.UTC(2026, 0, 1);
	now = 0;
	timers = new Map();
	last = 0;
	fired = 0;

	set(call, ms = 0) {
		if (!(ms <= 2 ** 31 - 1)) ms = 1; // browsers do the same
		this.timers.set(++this.last, { call, at: this.now + Math.max(1, Math.trunc(ms)) });
		return this.last;
	}

	async pass(ms) {
		await settled();
		for (const end = this.now + ms; ; await settled()) {
			const [id, timer] = [...this.timers].sort(([a, x], [b, y]) => x.at - y.at || a - b)[0] ?? [];
			const next = timer && timer.at <= end ? timer.at : end;
			this.wall += next - this.now;
			this.now = next;
			if (!timer || timer.at > end) return;
			assert(++this.fired < 10_000, "timers that never end");
			this.timers.delete(id);
			timer.call();
		}
	}
}

const { fetch, setTimeout, clearTimeout, setImmediate } = globalThis;
const { now } = Date;
const { random } = Math;
async function settled() {
	for (let i = 0; i < 5; i++) await new Promise((done) => setImmediate(done));
}

// A Target records its listeners, so that a test can count them.
class Target extends EventTarget {
	listeners = new Map();
	addEventListener(type, listener) { this.listeners.set(type, listener); super.addEventListener(type, listener); }
	removeEventListener(type, listener) {
		if (this.listeners.get(type) === listener) this.listeners.delete(type);
		super.removeEventListener(type, listener);
	}
	fire(type) { this.dispatchEvent(new Event(type)); return settled(); }
}

const reply = (status, body, headers = {}) => new Response(typeof body === "string" ? body : JSON.stringify(body), { status, headers });
const unavailable = (headers) => reply(503, { error: "service_unavailable" }, headers);

// page returns a page that uses the module. Its fake server answers the posts with
// answers, in order, and then with tokens. An answer is one of these:
//
//	a Response
//	"lost"      the fetch fails
//	"hang"      the fetch hangs until it is aborted
//	a function  it is called with the number of the post, and returns an answer
function page(t, { answers = [], lifetime = 900, options = {}, prerendering = false } = {}) {
	const time = new Time();
	const p = { time, posts: [], tokens: [], ends: [], troubles: [] };
	p.document = globalThis.document = Object.assign(new Target(), { prerendering });
	p.window = globalThis.window = new Target();
	globalThis.setTimeout = (call, ms) => time.set(call, ms);
	globalThis.clearTimeout = (id) => time.timers.delete(id);
	Date.now = () => time.wall;
	globalThis.fetch = async (url, init) => {
		const n = p.posts.push({ url, init, at: (time.wall - p.begin) / SECOND, aborted: () => init.signal.aborted });
		assert(!init.signal.aborted);
		let answer = answers.length ? answers.shift() : reply(200, { access_token: `token ${n}`, token_type: "Bearer", expires_in: lifetime, scope: "/ping.read" });
		if (typeof answer === "function") answer = await answer(n);
		if (answer === "lost") throw new TypeError("Failed to fetch");
		if (answer !== "hang") return answer;
		return new Promise((_, reject) => init.signal.addEventListener("abort", () => reject(init.signal.reason)));
	};
	p.begin = time.wall;
	p.at = () => p.posts.map((post) => post.at);
	p.session = moovToken({
		url: "/moov-token",
		onToken(token) { p.tokens.push(token); },
		onEnd(status) { p.ends.push(status); },
		onTrouble(trouble) { p.troubles.push(trouble); },
		...options,
	});
	t.after(() => {
		p.session.stop();
		Object.assign(globalThis, { fetch, setTimeout, clearTimeout });
		[Date.now, Math.random] = [now, random];
	});
	return p;
}

// nothing asserts that a page has no timer and no listener, and makes no more requests.
async function nothing(p) {
	const posts = p.posts.length;
	assert.equal(p.time.timers.size, 0, "timers");
	assert.equal(p.document.listeners.size + p.window.listeners.size, 0, "listeners");
	for (const type of ["visibilitychange", "prerenderingchange"]) await p.document.fire(type);
	for (const type of ["pageshow", "online"]) await p.window.fire(type);
	await p.time.pass(HOUR);
	assert.equal(p.posts.length, posts, "requests");
	assert.equal(p.session.token, null);
}

const near = (got, from, to, what) => assert(got > from - 1e-6 && got < to + 1e-6, `${what ?? "want"} ${from} to ${to}, got ${got}`);

test("the request", async (t) => {
	const p = page(t, { options: { headers: { "X-Page-User": "ada" } } });
	assert.equal(p.session.token, null);
	await settled();
	const { url, init } = p.posts[0];
	assert.equal(url, "/moov-token");
	assert.equal(init.method, "POST");
	assert.equal(init.credentials, "include");
	assert.deepEqual(init.headers, { "X-Page-User": "ada" });
	assert.deepEqual(p.tokens, [{ access_token: "token 1", token_type: "Bearer", expires_in: 900, scope: "/ping.read" }]);
	assert.equal(p.session.token, "token 1");
});

test("only url is required", async (t) => {
	const errors = t.mock.method(console, "error", () => {});
	const p = page(t, { answers: [unavailable(), reply(200, { access_token: "a", expires_in: 900 }), reply(401, {})], options: { onToken: undefined, onEnd: undefined, onTrouble: undefined } });
	await p.time.pass(10 * SECOND);
	assert.equal(p.session.token, "a");
	await p.time.pass(HOUR);
	await nothing(p);
	assert.equal(errors.mock.callCount(), 0);
});

test("renewals are at 80 % of the lifetime", async (t) => {
	const p = page(t);
	await p.time.pass(2160 * SECOND);
	assert.deepEqual(p.at(), [0, 720, 1440, 2160]);
	assert.equal(p.tokens.length, 4);
});

test("the lifetime begins when the request is sent", async (t) => {
	const slow = (n) => new Promise((done) => globalThis.setTimeout(() => done(reply(200, { access_token: `token ${n}`, expires_in: 100 })), 20 * SECOND));
	const p = page(t, { answers: [slow, "hang"] });
	await p.time.pass(99 * SECOND);
	assert.deepEqual(p.at(), [0, 80]);
	assert.equal(p.session.token, "token 1");
	await p.time.pass(SECOND);
	assert.equal(p.session.token, null);
});

test("renewals are at least 5 s apart", async (t) => {
	const p = page(t, { lifetime: 1 });
	await p.time.pass(999);
	assert.equal(p.session.token, "token 1");
	await p.time.pass(1);
	assert.equal(p.session.token, null);
	await p.time.pass(14 * SECOND);
	assert.deepEqual(p.at(), [0, 5, 10, 15]);
});

test("renew does not wait for the 5 s", async (t) => {
	const p = page(t);
	await settled();
	assert.equal(await p.session.renew(), "token 2");
	assert.equal(await p.session.renew(), "token 3");
	assert.equal(p.session.token, "token 3");
	assert.deepEqual(p.at(), [0, 0, 0]);
	await p.time.pass(719 * SECOND);
	assert.equal(p.posts.length, 3);
	await p.time.pass(SECOND);
	assert.equal(p.posts.length, 4);
});

for (const [name, lifetime] of [["three days", 3 * DAY], ["30 days", 30 * DAY], ["a year", 365 * DAY]]) {
	test(`a lifetime of ${name}`, async (t) => { // setTimeout takes less than 25 days
		const p = page(t, { lifetime: lifetime / SECOND });
		await p.time.pass(HOUR);
		assert.equal(p.posts.length, 1);
		p.time.wall = p.begin + 0.8 * lifetime - MINUTE;
		await p.time.pass(MINUTE - 1);
		assert.equal(p.posts.length, 1);
		await p.time.pass(SECOND);
		assert.equal(p.posts.length, 2);
	});
}

test("without a usable expires_in the lifetime is 5 min", async (t) => {
	const p = page(t, { answers: [reply(200, { access_token: "a" }), reply(200, { access_token: "b", expires_in: "soon" }), reply(200, { access_token: "c", expires_in: null })] });
	await p.time.pass(720 * SECOND);
	assert.deepEqual(p.at(), [0, 240, 480, 720]);
});

for (const [event, of] of [["visibilitychange", "document"], ["pageshow", "window"], ["online", "window"]]) {
	test(`the machine sleeps for 20 min: ${event}`, async (t) => {
		const p = page(t);
		await p.time.pass(MINUTE);
		p.time.wall += 20 * MINUTE;
		assert.equal(p.session.token, null, "expired");
		await p[of].fire(event);
		assert.equal(p.posts.length, 2);
		assert.equal(p.session.token, "token 2");
		assert.equal(p.time.timers.size, 1);
		await p[of].fire(event);
		assert.equal(p.posts.length, 2, "once");
	});
}

test("the machine sleeps for 20 min, and no event says so", async (t) => {
	const p = page(t);
	await p.time.pass(MINUTE);
	p.time.wall += 20 * MINUTE;
	await p.time.pass(15 * SECOND);
	assert.equal(p.session.token, "token 2");
});

test("the machine sleeps during a request", async (t) => {
	const p = page(t, { answers: ["hang"] });
	await p.time.pass(SECOND);
	p.time.wall += 20 * MINUTE;
	await p.document.fire("visibilitychange");
	assert(p.posts[0].aborted());
	await p.time.pass(SECOND);
	assert.equal(p.posts.length, 2);
	assert.equal(p.session.token, "token 2");
});

test("a token that has expired on arrival is renewed at once", async (t) => {
	let arrive;
	const p = page(t, { answers: [() => new Promise((done) => { arrive = () => done(reply(200, { access_token: "old", expires_in: 900 })); })] });
	await settled();
	p.time.wall += 20 * MINUTE;
	arrive();
	await settled();
	assert.equal(p.session.token, "token 2");
});

test("events do nothing if no renewal is due", async (t) => {
	const p = page(t);
	await settled();
	for (let i = 0; i < 10; i++) {
		await p.time.pass(SECOND);
		await p.document.fire("visibilitychange");
		await p.window.fire("pageshow");
		await p.window.fire("online");
	}
	assert.equal(p.posts.length, 1);
	assert.equal(p.time.timers.size, 1);
});

test("the clock is set back", async (t) => {
	const p = page(t);
	await p.time.pass(MINUTE);
	p.time.wall -= DAY;
	await p.time.pass(15 * SECOND);
	assert.equal(p.posts.length, 2);
	await p.time.pass(719 * SECOND - 15 * SECOND);
	assert.equal(p.posts.length, 2, "once");
});

test("calls of renew share one chain of renewals", async (t) => {
	const p = page(t, { answers: ["hang"] });
	const promises = Array.from({ length: 10 }, () => p.session.renew());
	await settled();
	assert.equal(p.posts.length, 1, "they join the request under way");
	await p.time.pass(MINUTE);
	for (const promise of promises) await assert.rejects(promise);
	await p.time.pass(10 * SECOND);
	assert.equal(p.session.token, "token 2");
	for (let i = 0; i < 10; i++) await p.session.renew();
	assert.equal(p.time.timers.size, 1);
	const posts = p.posts.length;
	await p.time.pass(720 * SECOND);
	assert.equal(p.posts.length, posts + 1);
	await p.time.pass(HOUR);
	assert.equal(p.posts.length, posts + 6);
});

test("a second session that was stopped makes no requests", async (t) => { // a framework may mount a component twice
	const p = page(t);
	const second = moovToken({ url: "/moov-token" });
	second.stop();
	await p.time.pass(HOUR);
	assert.equal(p.posts.length, 7);
});

for (const [name, failed, status] of [
	["offline", () => "lost", 0], ["502", () => reply(502, {}), 502], ["503", unavailable, 503], ["504", () => reply(504, {}), 504],
	["404", () => reply(404, "not found"), 404], ["a fetch that hangs", () => "hang", 0], ["a fetch that ignores its signal", () => () => new Promise(() => {}), 0],
]) {
	test(`${name}: retried at longer intervals`, async (t) => {
		const p = page(t, { answers: Array.from({ length: 8 }, failed) });
		await p.time.pass(20 * MINUTE);
		assert.equal(p.tokens[0].access_token, "token 9");
		const takes = status === 0 && name !== "offline" ? 60 : 0;
		const waits = p.at().slice(1, 9).map((at, i) => at - p.at()[i] - takes);
		for (const [i, [from, to]] of [[5, 6], [10, 12], [20, 24], [40, 48], [50, 60], [50, 60], [50, 60], [50, 60]].entries()) near(waits[i], from, to + 0.1, `wait ${i + 1}`);
		assert.deepEqual(p.troubles.map((trouble) => trouble.status), Array(8).fill(status));
		for (const [i, { retryIn }] of p.troubles.entries()) near(waits[i], retryIn - 0.01, retryIn + 0.01, "as retryIn said:");
		assert.deepEqual(p.ends, []);
	});
}

test("after a token the back-off starts over", async (t) => {
	const p = page(t, { answers: [unavailable(), unavailable(), unavailable(), reply(200, { access_token: "a", expires_in: 900 }), unavailable()] });
	await p.time.pass(HOUR);
	near(p.troubles[3].retryIn, 5, 6);
});

test("pages do not all retry at the same moment", async (t) => {
	const waits = new Set();
	for (let i = 0; i < 20; i++) {
		const p = page(t, { answers: [unavailable()] });
		await settled();
		waits.add(p.troubles[0].retryIn);
	}
	assert(waits.size > 3, [...waits].join());
});

test("after a failed renewal the current token stays until it expires", async (t) => {
	const p = page(t, { answers: [reply(200, { access_token: "a", expires_in: 900 }), ...Array.from({ length: 20 }, () => reply(502, {}))] });
	await p.time.pass(899 * SECOND);
	assert(p.troubles.length > 3);
	assert.equal(p.session.token, "a");
	await p.time.pass(SECOND);
	assert.equal(p.session.token, null);
});

test("503 without Retry-After is retried after 5 s", async (t) => {
	Math.random = () => 0;
	const p = page(t, { answers: Array.from({ length: 100 }, () => unavailable()) });
	Math.random = () => 0;
	await p.time.pass(4999);
	assert.equal(p.posts.length, 1);
	await p.time.pass(1);
	assert.equal(p.posts.length, 2);
});

for (const [value, from, to] of [
	["7", 7, 7], ["1", 1, 1], ["120", 120, 120], ["604800", 3600, 3600], // reduced to an hour
	[new Date(Date.UTC(2026, 0, 1, 0, 0, 30)).toUTCString(), 30, 30],
	["0", 5, 6], ["", 5, 6], ["soon", 5, 6], ["-3", 5, 6], [new Date(0).toUTCString(), 5, 6],
]) {
	test(`Retry-After: ${value}`, async (t) => {
		const p = page(t, { answers: [unavailable({ "Retry-After": value })] });
		await settled();
		near(p.troubles[0].retryIn, from, to);
		await p.time.pass(1000 * p.troubles[0].retryIn - 1);
		assert.equal(p.posts.length, 1);
		await p.time.pass(1);
		assert.equal(p.posts.length, 2);
		assert.equal(p.session.token, "token 2");
	});
}

test("online: a retry after no answer starts at once", async (t) => {
	const p = page(t, { answers: ["lost", "lost", "lost", "lost"] });
	await p.time.pass(43 * SECOND); // 5 + 10 + 20 s and jitter
	assert.equal(p.posts.length, 4);
	await p.window.fire("online");
	assert.equal(p.posts.length, 5);
	assert.equal(p.session.token, "token 5");
	assert.equal(p.time.timers.size, 1);
});

test("online: a retry after an answer keeps its time", async (t) => {
	const p = page(t, { answers: [unavailable({ "Retry-After": "60" })] });
	await p.time.pass(SECOND);
	await p.window.fire("online");
	assert.equal(p.posts.length, 1);
});

test("online: a request under way continues", async (t) => {
	const p = page(t, { answers: ["lost", "hang"] });
	await p.time.pass(7 * SECOND);
	await p.window.fire("online");
	assert.equal(p.posts.length, 2);
	assert(!p.posts[1].aborted());
});

test("shown: a retry keeps its time", async (t) => {
	const p = page(t, { answers: ["lost"] });
	await p.time.pass(SECOND);
	await p.document.fire("visibilitychange");
	assert.equal(p.posts.length, 1);
});

test("a request takes 60 s at most", async (t) => {
	const p = page(t, { answers: ["hang"] });
	await p.time.pass(MINUTE - 1);
	assert(!p.posts[0].aborted());
	await p.time.pass(1);
	assert(p.posts[0].aborted());
	assert.deepEqual(p.troubles.map((trouble) => trouble.status), [0]);
});

test("a body that never ends", async (t) => {
	const p = page(t, { answers: [new Response(new ReadableStream({}), { status: 200 })] });
	await p.time.pass(MINUTE);
	assert.equal(p.troubles.length, 1);
	await p.time.pass(10 * SECOND);
	assert.equal(p.session.token, "token 2");
});

test("stop ends everything", async (t) => {
	const p = page(t);
	assert.deepEqual([p.document.listeners.size, p.window.listeners.size], [2, 2]);
	await p.time.pass(MINUTE);
	p.session.stop();
	await nothing(p);
	p.session.stop();
	await assert.rejects(p.session.renew(), /ended/);
	await nothing(p);
	assert.deepEqual([p.ends, p.troubles], [[], []]);
});

test("stop during a fetch", async (t) => {
	const p = page(t, { answers: ["hang"] });
	const renewal = p.session.renew();
	await settled();
	p.session.stop();
	assert(p.posts[0].aborted());
	await assert.rejects(renewal, /stopped/);
	await nothing(p);
	assert.deepEqual([p.tokens, p.ends, p.troubles], [[], [], []], "no function of the page is called");
});

test("stop during a fetch that ignores its signal", async (t) => {
	let answer;
	const p = page(t, { answers: [() => new Promise((done) => { answer = () => done(reply(200, { access_token: "late", expires_in: 900 })); })] });
	const renewal = p.session.renew();
	await settled();
	p.session.stop();
	await assert.rejects(renewal, /stopped/);
	answer();
	await nothing(p);
	assert.deepEqual(p.tokens, []);
});

test("stop before a retry", async (t) => {
	const p = page(t, { answers: ["lost"] });
	await p.time.pass(SECOND);
	p.session.stop();
	await nothing(p);
});

for (const status of [401, 403, 409]) {
	test(`${status} ends the renewals`, async (t) => {
		const p = page(t, { answers: [reply(200, { access_token: "a", expires_in: 900 }), reply(status, { error: "no" })] });
		await p.time.pass(720 * SECOND);
		assert.deepEqual(p.ends, [status]);
		assert.deepEqual(p.troubles, []);
		assert.equal(p.session.token, null);
		await nothing(p);
		await assert.rejects(p.session.renew(), /ended/);
		assert.deepEqual(p.ends, [status], "once");
	});
}

const html = (status) => new Response("<!doctype html><title>Sign in</title>", { status, headers: { "Content-Type": "text/html" } });
for (const [name, answer] of [
	["a sign-in page", () => html(200)], ["an empty page", () => reply(200, "")], ["JSON without a token", () => reply(200, { error: "no" })],
	["null", () => reply(200, "null")], ["a string", () => reply(200, '"token"')], ["a token that is not a string", () => reply(200, { access_token: { a: 1 } })],
	["an empty token", () => reply(200, { access_token: "" })], ["JSON that is cut off", () => reply(200, '{"access_token":"a')],
]) {
	test(`200 with ${name} is no token, and is retried`, async (t) => {
		const p = page(t, { answers: [answer()] });
		await settled();
		assert.equal(p.session.token, null);
		assert.deepEqual(p.tokens, []);
		assert.equal(p.troubles[0].status, 200);
		near(p.troubles[0].retryIn, 5, 6);
		await p.time.pass(6 * SECOND);
		assert.equal(p.session.token, "token 2");
	});
}

test("after a sign-in page the current token stays", async (t) => {
	const p = page(t, { answers: [reply(200, { access_token: "a", expires_in: 900 }), html(200)] });
	await p.time.pass(721 * SECOND);
	assert.equal(p.session.token, "a");
});

test("renew is rejected at the first failure", async (t) => {
	const p = page(t, { answers: [reply(502, {}), "lost", reply(409, {})] });
	await assert.rejects(p.session.renew(), { message: "moovToken: no token: status 502", status: 502 });
	await assert.rejects(p.session.renew(), { message: "moovToken: no answer", status: 0 });
	await assert.rejects(p.session.renew(), { message: "moovToken: no token: status 409", status: 409 });
	assert.deepEqual([p.troubles.length, p.ends], [2, [409]]);
});

test("a failure that no one waits for is not an unhandled rejection", async (t) => {
	const unhandled = [];
	const note = (reason) => unhandled.push(reason);
	process.on("unhandledRejection", note);
	t.after(() => process.off("unhandledRejection", note));
	const p = page(t, { answers: [reply(502, {}), "lost"] });
	await p.time.pass(30 * SECOND);
	p.session.renew();
	p.session.stop();
	p.session.renew();
	await settled();
	assert.deepEqual(unhandled, []);
});

test("renewals continue if functions of the page throw", async (t) => {
	const errors = t.mock.method(console, "error", () => {});
	let calls = 0;
	const fails = () => { calls++; throw new Error("of the page"); };
	const p = page(t, { answers: ["lost", reply(502, {})], options: { onToken: fails, onTrouble: async () => fails(), onEnd: fails } });
	await p.time.pass(HOUR);
	assert.equal(p.session.token, `token ${p.posts.length}`);
	assert(calls >= 7);
	assert.equal(errors.mock.callCount(), calls, "each error is logged to the console");
	assert.equal(await p.session.renew(), p.session.token);
});

test("functions of the page may stop and renew", async (t) => {
	const p = page(t, { options: { onToken: () => p.session.stop() } });
	await settled();
	assert.equal(p.posts.length, 1);
	await nothing(p);

	const q = page(t, { answers: ["lost"], options: { onTrouble: () => { q.session.renew(); q.session.renew(); } } });
	await settled();
	assert.equal(q.session.token, "token 2");
	assert.equal(q.time.timers.size, 1);
});

test("a prerendered page requests nothing until it is shown", async (t) => {
	const p = page(t, { prerendering: true });
	await p.time.pass(HOUR);
	await p.document.fire("visibilitychange");
	assert.equal(p.posts.length, 0);
	assert.equal(p.time.timers.size, 1);
	p.document.prerendering = false;
	await p.document.fire("prerenderingchange");
	await p.document.fire("visibilitychange");
	await p.window.fire("pageshow");
	assert.equal(p.session.token, "token 1");
	assert.equal(p.posts.length, 1);
});
