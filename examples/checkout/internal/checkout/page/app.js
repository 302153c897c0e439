// This is the page's script. It calls Moov's API with a token that moov-token.js keeps
// fresh.

import { moovToken } from "/moov-token.js";

const $ = (id) => document.getElementById(id);
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

let server;         // the reply to GET /session: the API's URL, and the users who can sign in
let session = null; // the current session, null while no one is signed in: { user, tokens, token, … }

// startTokens keeps the token of a session fresh.
function startTokens(s) {
	s.tokens = moovToken({
		url: "/moov-token",
		headers: { "X-Page-User": s.user.id },
		onToken(token) { showToken(s, token); },
		onEnd(status) {
			note("POST", "/moov-token", status, "to your server, for a token");
			endSession(s, status);
		},
		onTrouble({ status, retryIn }) { showRetry(s, status, retryIn); },
	});
}

// showToken shows a new token. It is called with each one.
function showToken(s, token) {
	note("POST", "/moov-token", 200, s.token ? "to your server, for the next token" : "to your server, for a token");
	s.renewals = s.token ? s.renewals + 1 : 0;
	s.token = token;
	s.expiry = Date.now() + 1000 * token.expires_in;
	// Only the first renewal is announced: a screen reader would read out every one.
	if (s.renewals < 2 || s.waiting) {
		say("token", "good", s.renewals ? "Token renewed." : "Token received.", s.renewals
			? " The page continues to renew the token before it expires."
			: " The page will request the next token when the ring reaches the mark.");
	}
	s.waiting = false;
	draw();
}

// endSession ends the session in this page after the server has refused it with 401 or 409.
function endSession(s, status) {
	if (s !== session) return;
	end();
	say("signed", "bad", `${status}.`, status === 409
		? ` Another user has signed in from another tab. This page was signed in as ${s.user.name}. Reload it or sign in again.`
		: " The session has ended. Sign in again.");
}

// showRetry shows that a renewal failed and will be retried.
function showRetry(s, status, retryIn) {
	note("POST", "/moov-token", status, "to your server, for a token");
	s.waiting = true;
	say("token", "warn", status ? `${status}.` : "No reply.", (status === 503
		? " The request waited too long in your server’s queue."
		: status ? " Your server could not get a token from Moov. The server’s log says why." : " Your server cannot be reached.") +
		` The page retries in ${Math.floor(retryIn)} s.`);
}

// call calls the API with the current token, or with the token in the options. If the API
// answers 429 or 503, call tells the waiting function, waits as Retry-After says, and
// retries.
async function call(s, method, path, { body, token = null, waiting = () => {}, quiet = false } = {}) {
	for (let renewed = false; ;) {
		const bearer = token ?? s.tokens.token ?? await s.tokens.renew().catch(() => null); // the token may have expired while the computer slept
		if (!bearer) return { status: 401, content: {} };
		const reply = await fetch(server.api + path, {
			method, body,
			headers: { Authorization: `Bearer ${bearer}`, ...body && { "Content-Type": "application/json" } },
		}).catch(() => Response.error());
		const content = await reply.json().catch(() => ({}));
		if (!quiet) note(method, path, reply.status, "to Moov’s API");
		if (reply.status === 401 && !token && !renewed) { // the token may have been revoked, for example because another user signed in
			renewed = true;
			if (await s.tokens.renew().catch(() => null)) continue;
		}
		if (reply.status !== 429 && reply.status !== 503) return { status: reply.status, content };
		const seconds = retryAfter(reply) || 1;
		waiting(seconds, reply.status);
		await wait(seconds);
	}
}

// retryAfter returns the reply's Retry-After in seconds, or 0 if there is no usable one.
function retryAfter(reply) {
	const value = reply.headers.get("Retry-After");
	const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
	return seconds > 0 ? Math.min(Math.ceil(seconds), 60) : 0;
}

// --- The buttons ---

async function signIn(user) {
	if (session?.user.id === user.id) return;
	end();
	const reply = await fetch("/sign-in", { method: "POST", body: new URLSearchParams({ user: user.id }) }).catch(() => Response.error());
	note("POST", "/sign-in", reply.status, "to your server, for a session cookie");
	if (!reply.ok) return say("signed", "bad", `${reply.status || "No reply"}.`, " You are not signed in. Is the server running?");
	begin((await reply.json()).user);
}

async function signOut() {
	const s = session;
	const button = $("out");
	button.setAttribute("aria-disabled", "true");
	const reply = await fetch("/sign-out", { method: "POST", headers: { "X-Page-User": s.user.id } }).catch(() => Response.error());
	note("POST", "/sign-out", reply.status, "to your server, which revokes the token at Moov");
	if (!reply.status) {
		button.setAttribute("aria-disabled", "false");
		return say("ended", "bad", "No reply.", " Your server cannot be reached.");
	}
	if (reply.status === 409) return endSession(s, 409);
	if (s === session) end();
	say("signed", "", "", "Signed out.");
	if (!reply.ok) return say("ended", "warn", `${reply.status}.`, " You are signed out, but Moov has not revoked the token yet. Your server retries until the token expires.");
	if (!s.token) return say("ended", "good", "Signed out.", " There was no token to revoke.");
	say("ended", "", "", "The token is revoked. Trying it once more …");
	const { status } = await call(s, "GET", server.embedded ? cards(s.user) : "/ping", { token: s.token.access_token });
	if (status === 401) say("ended", "good", "401 Unauthorized, as expected.", " Your server revoked the token, so a stolen copy is useless.");
	else say("ended", "bad", named(status), " The API should have answered 401.");
}

async function link() {
	const { status, content } = await call(session, "POST", cards(session.user), {
		body: JSON.stringify({ cardNumber: "4111 1111 1111 1111" }), waiting: waits("linked"),
	});
	if (status === 201) say("linked", "good", "201 Created.", ` The card ending in ${content.lastFourCardNumber} is linked. Its number went directly from this page to the API.`);
	else say("linked", "bad", named(status), " The card was not linked.");
}

async function askForTheOther() {
	const other = server.users.find((user) => user.id !== session.user.id);
	const { status } = await call(session, "GET", cards(other), { waiting: waits("refused") });
	if (status === 403) say("refused", "good", "403 Forbidden, as expected.", ` The token is valid for ${session.user.name}’s account only, so ${other.name}’s cards stay private.`);
	else say("refused", "bad", named(status), " The API should have answered 403.");
}

async function callMany() {
	const s = session;
	const dots = Array.from({ length: 25 }, () => document.createElement("i"));
	$("dots").replaceChildren(...dots);
	let good = 0, bad = 0, refusals = 0, until = 0;
	say("limited", "", "", "Calling …");
	await Promise.all(dots.map(async (dot) => {
		const { status } = await call(s, "GET", cards(s.user), {
			quiet: true,
			waiting(seconds) {
				refusals++;
				dot.className = "waits";
				if (Date.now() < until) return;
				until = Date.now() + 1000 * seconds;
				setTimeout(() => say("limited", "warn", "429 Too Many Requests.",
					` The API has reached its limit. ${dots.filter((d) => d.className === "waits").length} of 25 calls wait ${seconds} s, as Retry-After says.`), 150);
			},
		});
		dot.className = status === 200 ? "done" : "failed";
		status === 200 ? good++ : bad++;
	}));
	if (refusals) note("GET", cards(s.user), 429, `to Moov’s API, refused ${refusals} times and retried`);
	note("GET", cards(s.user), bad ? 0 : 200, `to Moov’s API, ${good} of 25 calls succeeded`);
	say("limited", bad ? "bad" : "good", `${good} of 25 calls succeeded.`, ` The API answered 429 to ${refusals} attempts. The page waited as long as Retry-After said, and retried them.`);
}

async function ping() {
	const { status } = await call(session, "GET", "/ping", { waiting: waits("pinged") });
	if (status === 200) say("pinged", "good", "200 OK.", " Moov accepted the token from this page.");
	else if (status === 0) say("pinged", "bad", "The page cannot read a reply.", ` Is ${location.origin} on the API key’s list of allowed domains?`);
	else say("pinged", "bad", named(status), "");
}

// crowd requests tokens for the other accounts, and then one for this page. The page's
// request goes first.
async function crowd() {
	const s = session;
	const reply = await fetch("/crowd", { method: "POST" }).catch(() => Response.error());
	note("POST", "/crowd", reply.status, "to your server, which requests 500 tokens");
	if (!reply.ok) return say("crowded", "bad", named(reply.status), " The server did not start the token requests.");
	let before = await watch();
	while (before.crowd - before.inQueue > 20) { // some requests have not reached the queue yet
		await wait(0.05);
		before = await watch();
	}
	say("crowded", "", "", `${before.inQueue} requests are in the queue. Now this page requests a token …`);
	const token = await s.tokens.renew().catch(() => null);
	const after = await watch();
	if (token) say("crowded", "good", "This page went first.", ` There were ${before.inQueue} requests in the queue when this page requested its token. When the token arrived, ${after.inQueue} requests were still waiting.`);
	else say("crowded", "warn", "No token yet.", ` ${after.inQueue} requests are in the queue.`);
}

// watch shows the operator's figures and schedules its next call, which comes sooner while
// requests are in the queue.
async function watch() {
	const reply = await fetch("/stats").catch(() => Response.error());
	const stats = reply.ok ? await reply.json() : { crowd: 0, inQueue: 0 };
	clearTimeout(watch.timer);
	watch.timer = setTimeout(watch, stats.crowd || stats.inQueue ? 500 : 3000);
	if (!reply.ok) return stats;
	$("progress").value = $("progress").max - stats.crowd;
	text($("queued"), stats.inQueue);
	text($("longest"), `${stats.longestWait.toFixed(1)} s`);
	text($("rate"), `${stats.rate.toFixed(1)}/s`);
	text($("needed"), `${stats.needed.toFixed(1)}/s`);
	text($("served"), stats.served);
	text($("toomany"), stats.refused);
	text($("timedout"), stats.timedOut);
	return stats;
}

// --- The display ---

function begin(user) {
	session = { user, renewals: 0 };
	for (const id of ["linked", "refused", "limited", "pinged", "ended", "token", "crowded"]) say(id, "", "", "");
	$("dots").replaceChildren();
	say("signed", "good", `You are ${user.name}.`, server.embedded ? ` Your account at Moov is ${user.account}.` : "");
	const other = server.users.find((u) => u.id !== user.id);
	$("other").textContent = `Ask for ${other.name}’s cards`;
	enable();
	startTokens(session);
}

function end() {
	session?.tokens.stop();
	session = null;
	say("signed", "", "", "");
	enable();
	draw();
}

// enable marks buttons that cannot be used yet with aria-disabled. A disabled attribute
// would take the focus from a button, and hide the button from some screen readers.
function enable() {
	for (const id of ["link", "other", "many", "ping", "out", "crowd"]) $(id).setAttribute("aria-disabled", String(!session));
	for (const button of $("users").children) {
		const { name } = server.users.find((user) => user.id === button.value);
		const pressed = button.value === session?.user.id;
		button.setAttribute("aria-pressed", String(pressed));
		text(button.firstElementChild, pressed ? `Signed in as ${name}` : session ? `Switch to ${name}` : `Sign in as ${name}`);
	}
	$("users").classList.toggle("first", !session);
	if (!session) say("token", "", "", "There is no token because no one is signed in.");
}

function draw() {
	const token = session?.token;
	const left = token ? Math.max(0, session.expiry - Date.now()) / 1000 : 0;
	const share = token ? left / Math.max(1, token.expires_in) : 0;
	$("left").style.strokeDasharray = `${100 * share} 100`;
	$("ring").classList.toggle("due", Boolean(token) && share <= 0.2);
	const [number, unit] = !token ? ["–", "no token"] : left > 5400 ? [Math.round(left / 3600), "hours left"]
		: left > 90 ? [Math.round(left / 60), "minutes left"] : [Math.ceil(left), left ? "seconds left" : "expired"];
	text($("seconds"), number);
	text($("unit"), unit);
	const label = token ? `The token has ${number} ${unit}` : "No token";
	if ($("ring").getAttribute("aria-label") !== label) $("ring").setAttribute("aria-label", label);
	text($("life"), token ? `${token.expires_in} s (expires_in)` : "–");
	const due = token && Math.max(0, Math.ceil(left - token.expires_in * 0.2));
	text($("next"), !token ? "–" : (session.waiting ? "waiting for the server" : `requested in ${due} s`) + (session.renewals ? `; renewals so far: ${session.renewals}` : ""));
	text($("tail"), token ? `…${token.access_token.slice(-8)}` : "–");
	if ($("scopes").dataset.of !== (token?.scope ?? "")) {
		$("scopes").dataset.of = token?.scope ?? "";
		$("scopes").replaceChildren(...token ? token.scope.split(" ").map((scope) => element("div", element("code", scope))) : ["–"]);
	}
}

// say sets the text of a status line. Screen readers read the text out.
function say(id, kind, strong, rest) {
	const line = $(id);
	line.className = `status ${kind}`;
	line.replaceChildren(...strong ? [element("b", strong)] : [], ...rest ? [rest] : []);
}

const waits = (id) => (seconds, status) => say(id, "warn", `${status}.`, ` The API is busy. The page retries in ${seconds} s.`);

// note adds a line to the list of requests.
function note(method, path, status, what) {
	const kind = status >= 200 && status < 300 ? "good" : status === 429 || status === 503 ? "warn" : "bad";
	const code = element("span", String(status || "–"));
	code.className = `code ${kind}`;
	$("log").prepend(element("li", element("code", `${method} ${path}`), code, element("small", `${new Date().toLocaleTimeString()}, ${what}`)));
	while ($("log").children.length > 40) $("log").lastElementChild.remove();
	$("nothing").hidden = true;
}

function element(name, ...content) {
	const e = document.createElement(name);
	e.append(...content);
	return e;
}

function text(e, value) {
	if (e.textContent !== String(value)) e.textContent = value;
}

const cards = (user) => `/accounts/${user.account}/cards`;
const named = (status) => status ? `${status}.` : "No reply.";

// --- Start ---

function press(id, status, action) {
	let busy = false; // a click is ignored while the action of the last one is running
	$(id).addEventListener("click", async () => {
		if (busy) return;
		if (!session) return say(status, "warn", "", "Sign in first.");
		if (!session.token && id !== "out") return say(status, "warn", "", "There is no token yet.");
		busy = true;
		try { await action(); } finally { busy = false; }
	});
}

async function start() {
	const reply = await fetch("/session").catch(() => Response.error());
	if (!reply.ok) {
		text($("where"), "The server cannot be reached. Start it and reload this page.");
		return;
	}
	server = await reply.json();
	text($("where"), server.embedded ? "Embedded test server: nothing leaves this computer" : `Moov’s API: ${server.api}`);
	for (const e of document.querySelectorAll("[data-for]")) e.hidden = (e.dataset.for === "embedded") !== server.embedded;
	if (!server.embedded) $("callnote").append(" With the embedded test server, this page can also link a card, ask for another user’s cards, and reach the API’s rate limit.");
	$("users").append(...server.users.map((user) => {
		const button = element("button", element("span"), ...server.embedded ? [element("small", `account ${user.account}`)] : []);
		button.type = "button";
		button.value = user.id;
		button.addEventListener("click", () => signIn(user));
		return button;
	}));
	press("link", "linked", link);
	press("other", "refused", askForTheOther);
	press("many", "limited", callMany);
	press("ping", "pinged", ping);
	press("out", "ended", signOut);
	press("crowd", "crowded", crowd);
	enable();
	setInterval(draw, 250);
	if (server.embedded) watch();
	if (server.user) begin(server.user); // the user was signed in before the page was loaded
}

start();
