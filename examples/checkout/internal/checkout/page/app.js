// The page: it calls Moov's API with a token that moov-token.js keeps fresh.

import { moovToken } from "/moov-token.js";

const $ = (id) => document.getElementById(id);
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

let server;         // what GET /session says: where the API is, and who may sign in
let session = null; // from sign-in to sign-out: { user, tokens, token, … }

// keep keeps the token of a session fresh.
function keep(its) {
	its.tokens = moovToken({
		url: "/moov-token",
		headers: { "X-Page-User": its.user.id },
		onToken(token) { use(its, token); },
		onEnd(status) { refused(its, status); },
		onTrouble({ status, retryIn }) { wanting(its, status, retryIn); },
	});
}

// use is called with each new token.
function use(its, token) {
	note("POST", "/moov-token", 200, its.token ? "your server: the next token" : "your server: a token");
	its.renewals = its.token ? its.renewals + 1 : 0;
	its.token = token;
	its.expiry = Date.now() + 1000 * token.expires_in;
	// The first renewal is told. After that a screen reader would be disturbed each time.
	if (its.renewals < 2 || its.waiting) {
		say("token", "good", its.renewals ? "Renewed." : "Here it is.", its.renewals
			? " The page got the next token before the end of the one before. It goes on by itself."
			: " The mark on the ring is where the page will ask for the next one.");
	}
	its.waiting = false;
	draw();
}

// refused is called when there will be no more tokens.
function refused(its, status) {
	note("POST", "/moov-token", status, "your server: no token");
	if (its !== session) return;
	end();
	say("signed", "bad", `${status}.`, status === 409
		? ` Somebody else has signed in, in another tab. This page was ${its.user.name}’s: load it again, or sign in.`
		: " The session has ended. Sign in again.");
}

// wanting is called when there is no new token yet.
function wanting(its, status, retryIn) {
	note("POST", "/moov-token", status, "your server: no token");
	its.waiting = true;
	say("token", "warn", status ? `${status}.` : "No reply.", (status === 503
		? " Your server has many requests in the queue."
		: status ? " Your server got no token from Moov; its log says why." : " Your server cannot be reached.") +
		` The page asks again in ${Math.floor(retryIn)} s.`);
}

// call calls the API, with the newest token unless it is given one. At the API's
// limit it waits as long as it is told to, and tells the caller's waiting function.
async function call(its, method, path, { body, token = null, waiting = () => {}, quiet = false } = {}) {
	for (let renewed = false; ;) {
		const bearer = token ?? its.tokens.token ?? await its.tokens.renew().catch(() => null); // the computer was asleep, say
		if (!bearer) return { status: 401, content: {} };
		const reply = await fetch(server.api + path, {
			method, body,
			headers: { Authorization: `Bearer ${bearer}`, ...body && { "Content-Type": "application/json" } },
		}).catch(() => Response.error());
		const content = await reply.json().catch(() => ({}));
		if (!quiet) note(method, path, reply.status, "Moov’s API");
		if (reply.status === 401 && !token && !renewed) { // it was revoked: somebody else has signed in, say
			renewed = true;
			if (await its.tokens.renew().catch(() => null)) continue;
		}
		if (reply.status !== 429 && reply.status !== 503) return { status: reply.status, content };
		const seconds = retryAfter(reply) || 1;
		waiting(seconds, reply.status);
		await wait(seconds);
	}
}

// retryAfter is in seconds; 0 if the reply does not say.
function retryAfter(reply) {
	const value = reply.headers.get("Retry-After");
	const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
	return seconds > 0 ? Math.min(Math.ceil(seconds), 60) : 0;
}

// --- What the buttons do ---

async function signIn(user) {
	if (session?.user.id === user.id) return;
	end();
	const reply = await fetch("/sign-in", { method: "POST", body: new URLSearchParams({ user: user.id }) }).catch(() => Response.error());
	note("POST", "/sign-in", reply.status, "your server: a session cookie");
	if (!reply.ok) return say("signed", "bad", `${reply.status || "No reply"}.`, " That did not work. Is the server running?");
	begin((await reply.json()).user);
}

async function signOut() {
	const its = session;
	const button = $("out");
	button.setAttribute("aria-disabled", "true");
	const reply = await fetch("/sign-out", { method: "POST", headers: { "X-Page-User": its.user.id } }).catch(() => Response.error());
	note("POST", "/sign-out", reply.status, "your server: it revokes the token at Moov");
	if (!reply.status) {
		button.setAttribute("aria-disabled", "false");
		return say("ended", "bad", "No reply.", " Your server cannot be reached.");
	}
	if (reply.status === 409) return refused(its, 409);
	if (its === session) end();
	say("signed", "", "", "Signed out.");
	if (!reply.ok) return say("ended", "warn", `${reply.status}.`, " Signed out, but Moov has not revoked the token yet. Your server tries again, until the token has expired.");
	if (!its.token) return say("ended", "good", "Signed out.", " There was no token yet.");
	say("ended", "", "", "Revoked. Trying the token once more …");
	const { status } = await call(its, "GET", server.embedded ? cards(its.user) : "/ping", { token: its.token.access_token });
	if (status === 401) say("ended", "good", "401 Unauthorized, as it should be.", " The token was revoked with the session: a copy of it is worth nothing.");
	else say("ended", "bad", named(status), " That should have been a 401.");
}

async function link() {
	const { status, content } = await call(session, "POST", cards(session.user), {
		body: JSON.stringify({ cardNumber: "4111 1111 1111 1111" }), waiting: waits("linked"),
	});
	if (status === 201) say("linked", "good", "201 Created.", ` The card that ends in ${content.lastFourCardNumber} is linked. Its number went from this page to the API, and not through your server.`);
	else say("linked", "bad", named(status), " The card was not linked.");
}

async function askForTheOther() {
	const other = server.users.find((user) => user.id !== session.user.id);
	const { status } = await call(session, "GET", cards(other), { waiting: waits("refused") });
	if (status === 403) say("refused", "good", "403 Forbidden, as it should be.", ` The token is for ${session.user.name}’s account alone. ${other.name}’s cards stay ${other.name}’s.`);
	else say("refused", "bad", named(status), " That should have been a 403.");
}

async function callMany() {
	const its = session;
	const dots = Array.from({ length: 25 }, () => document.createElement("i"));
	$("dots").replaceChildren(...dots);
	let good = 0, bad = 0, late = 0, until = 0;
	const told = { waiting: 0 };
	say("limited", "", "", "Calling …");
	await Promise.all(dots.map(async (dot) => {
		const { status } = await call(its, "GET", cards(its.user), {
			quiet: true,
			waiting(seconds) {
				late++;
				dot.className = "waits";
				if (Date.now() < until) return;
				until = Date.now() + 1000 * seconds;
				setTimeout(() => say("limited", "warn", "429 Too Many Requests.",
					` The API is at its limit: ${dots.filter((d) => d.className === "waits").length} of 25 calls wait ${seconds} s, as its Retry-After says.`), 150);
			},
		});
		dot.className = status === 200 ? "done" : "failed";
		status === 200 ? good++ : bad++;
	}));
	if (late) note("GET", cards(its.user), 429, `Moov’s API: ${late} times, waited for`);
	note("GET", cards(its.user), bad ? 0 : 200, `Moov’s API: ${good} of 25`);
	say("limited", bad ? "bad" : "good", `${good} of 25 calls answered.`, ` The API said 429 to ${late} that came too early. The page waited as long as Retry-After said, and made them again.`);
}

async function ping() {
	const { status } = await call(session, "GET", "/ping", { waiting: waits("pinged") });
	if (status === 200) say("pinged", "good", "200 OK.", " Moov answered this page.");
	else if (status === 0) say("pinged", "bad", "No reply that this page may read.", ` Is ${location.origin} on the API key’s allowed-domain list?`);
	else say("pinged", "bad", named(status), "");
}

// crowd lets the other accounts request tokens, and then this page, which goes first.
async function crowd() {
	const its = session;
	const reply = await fetch("/crowd", { method: "POST" }).catch(() => Response.error());
	note("POST", "/crowd", reply.status, "your server: 500 accounts request tokens");
	if (!reply.ok) return say("crowded", "bad", named(reply.status), " The accounts request no tokens.");
	let before = await watch();
	while (before.crowd - before.inQueue > 20) { // they are still coming to the queue
		await wait(0.05);
		before = await watch();
	}
	say("crowded", "", "", `${before.inQueue} requests are in the queue. This page requests a token, too …`);
	const token = await its.tokens.renew().catch(() => null);
	const after = await watch();
	if (token) say("crowded", "good", "People first.", ` ${before.inQueue} requests were in the queue when this page asked for its token. When the token came, ${after.inQueue} of them were still there.`);
	else say("crowded", "warn", "No token yet.", ` ${after.inQueue} requests are in the queue.`);
}

// watch shows the operator's figures, and goes on: often while requests are in the queue.
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

// --- What is shown ---

function begin(user) {
	session = { user, renewals: 0 };
	for (const id of ["linked", "refused", "limited", "pinged", "ended", "token", "crowded"]) say(id, "", "", "");
	$("dots").replaceChildren();
	say("signed", "good", `You are ${user.name}.`, server.embedded ? ` Your account at Moov is ${user.account}.` : "");
	const other = server.users.find((u) => u.id !== user.id);
	$("other").textContent = `Ask for ${other.name}’s cards`;
	enable();
	keep(session);
}

function end() {
	session?.tokens.stop();
	session = null;
	say("signed", "", "", "");
	enable();
	draw();
}

// enable keeps buttons that cannot be used yet where they are, so that the focus
// does not get lost, and a screen reader finds them.
function enable() {
	for (const id of ["link", "other", "many", "ping", "out", "crowd"]) $(id).setAttribute("aria-disabled", String(!session));
	for (const button of $("users").children) {
		const { name } = server.users.find((user) => user.id === button.value);
		const pressed = button.value === session?.user.id;
		button.setAttribute("aria-pressed", String(pressed));
		text(button.firstElementChild, pressed ? `Signed in as ${name}` : session ? `Switch to ${name}` : `Sign in as ${name}`);
	}
	$("users").classList.toggle("first", !session);
	if (!session) say("token", "", "", "There is no token: nobody is signed in.");
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
	text($("next"), !token ? "–" : (session.waiting ? "waits for its server" : `by itself, in ${due} s`) + (session.renewals ? `; ${session.renewals} so far` : ""));
	text($("tail"), token ? `…${token.access_token.slice(-8)}` : "–");
	if ($("scopes").dataset.of !== (token?.scope ?? "")) {
		$("scopes").dataset.of = token?.scope ?? "";
		$("scopes").replaceChildren(...token ? token.scope.split(" ").map((scope) => element("div", element("code", scope))) : ["–"]);
	}
}

// say writes into one of the status lines, which screen readers read out.
function say(id, kind, strong, rest) {
	const line = $(id);
	line.className = `status ${kind}`;
	line.replaceChildren(...strong ? [element("b", strong)] : [], ...rest ? [rest] : []);
}

const waits = (id) => (seconds, status) => say(id, "warn", `${status}.`, ` The API is at its limit. The page calls again in ${seconds} s, as Retry-After says.`);

// note adds a line to what the page sent.
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

// --- The start ---

function press(id, status, action) {
	let busy = false; // a second click while the first is under way does nothing
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
		text($("where"), "The server cannot be reached. Start it, and load this page again.");
		return;
	}
	server = await reply.json();
	text($("where"), server.embedded ? "Embedded test server: nothing leaves this computer" : `Moov itself: ${server.api}`);
	for (const e of document.querySelectorAll("[data-for]")) e.hidden = (e.dataset.for === "embedded") !== server.embedded;
	if (!server.embedded) $("callnote").append(" With the embedded test server this page also links a card, asks for another user’s account, and meets the API’s limit.");
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
	if (server.user) begin(server.user); // the page was loaded again
}

start();
