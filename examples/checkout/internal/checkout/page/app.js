// The page: it gets a token from its server, keeps it fresh, and calls Moov's API.

const $ = (id) => document.getElementById(id);
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

let server;         // what GET /session says: where the API is, and who may sign in
let session = null; // from sign-in to sign-out: { user, token, timer, … }

// README, page: from here
async function renew(session) {
	const reply = await fetch("/moov-token", { method: "POST" }).catch(() => Response.error());
	const token = reply.ok && await reply.json().catch(() => null);
	if (!token) return refused(session, reply); // 401: signed out. 503: try again after Retry-After
	session.timer = setTimeout(renew, 1000 * Math.max(1, token.expires_in * 0.8), session);
	use(session, token); // access_token, token_type, expires_in (seconds), scope
}
// README, page: to here

// use is called with each new token.
function use(its, token) {
	note("POST", "/moov-token", 200, its.token ? "your server: the next token" : "your server: a token");
	if (its !== session) return clearTimeout(its.timer); // signed out meanwhile
	its.renewals = its.token ? its.renewals + 1 : 0;
	its.token = token;
	its.received = Date.now();
	its.expiry = its.received + 1000 * token.expires_in;
	// The first renewal is told. After that a screen reader would be disturbed each time.
	if (its.renewals < 2 || its.waiting) {
		say("token", "good", its.renewals ? "Renewed." : "Here it is.", its.renewals
			? " The page got the next token before the end of the one before. It goes on by itself."
			: " The mark on the ring is where the page will ask for the next one.");
	}
	its.waiting = false;
	draw();
}

// refused is called when there is no new token.
async function refused(its, reply) {
	note("POST", "/moov-token", reply.status, "your server: no token");
	if (its !== session) return;
	if (reply.status === 401 || reply.status === 403) {
		end();
		say("signed", "bad", `${reply.status}.`, " The session has ended. Sign in again.");
		return;
	}
	const seconds = retryAfter(reply) || 5;
	its.waiting = true;
	say("token", "warn", reply.status ? `${reply.status}.` : "No reply.", (reply.status === 503
		? " Your server has many requests for Moov in line."
		: reply.status ? " Your server got no token from Moov; its log says why." : " Your server cannot be reached.") +
		` The page asks again in ${seconds} s.`);
	its.timer = setTimeout(renew, 1000 * seconds, its);
}

// call calls the API. At the API's limit it waits as long as it is told to, and
// tells the caller's waiting function.
async function call(its, method, path, { body, waiting = () => {}, quiet = false } = {}) {
	for (;;) {
		if (its === session && Date.now() >= its.expiry && !its.waiting) { // the computer was asleep, say
			clearTimeout(its.timer);
			its.renewing ??= renew(its).finally(() => { its.renewing = null; }); // one for all calls
			await its.renewing;
		}
		const reply = await fetch(server.api + path, {
			method, body,
			headers: { Authorization: `Bearer ${its.token.access_token}`, ...body && { "Content-Type": "application/json" } },
		}).catch(() => Response.error());
		const content = await reply.json().catch(() => ({}));
		if (!quiet) note(method, path, reply.status, "Moov’s API");
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
	const reply = await fetch("/sign-out", { method: "POST" }).catch(() => Response.error());
	note("POST", "/sign-out", reply.status, "your server: it revokes the token at Moov");
	if (!reply.status) {
		button.setAttribute("aria-disabled", "false");
		return say("ended", "bad", "No reply.", " Your server cannot be reached.");
	}
	if (its === session) end();
	say("signed", "", "", "Signed out.");
	if (!reply.ok) return say("ended", "warn", `${reply.status}.`, " Signed out, but the token could not be revoked. It lives until it expires.");
	if (!its.token) return say("ended", "good", "Signed out.", " There was no token yet.");
	say("ended", "", "", "Revoked. Trying the token once more …");
	const { status } = await call(its, "GET", server.embedded ? cards(its.user) : "/ping");
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

// --- What is shown ---

function begin(user) {
	session = { user, renewals: 0 };
	for (const id of ["linked", "refused", "limited", "pinged", "ended", "token"]) say(id, "", "", "");
	$("dots").replaceChildren();
	say("signed", "good", `You are ${user.name}.`, server.embedded ? ` Your account at Moov is ${user.account}.` : "");
	const other = server.users.find((u) => u.id !== user.id);
	$("other").textContent = `Ask for ${other.name}’s cards`;
	enable();
	renew(session);
}

function end() {
	if (session) clearTimeout(session.timer);
	session = null;
	say("signed", "", "", "");
	enable();
	draw();
}

// enable keeps buttons that cannot be used yet where they are, so that the focus
// does not get lost, and a screen reader finds them.
function enable() {
	for (const id of ["link", "other", "many", "ping", "out"]) $(id).setAttribute("aria-disabled", String(!session));
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
	enable();
	setInterval(draw, 250);
	if (server.user) begin(server.user); // the page was loaded again
}

start();
