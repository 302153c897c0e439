// moov-token.js keeps a page's access token fresh. It asks Tokens.Handler of
// moovauth/platform for one, and for the next one before the end. docs/browser.md
// has examples. Times are in ms, as of Date.now(), unless they are said to be in s.

const EARLIEST = 5_000;      // from one request to the next
const REQUEST_MOST = 60_000; // for one request
const LOOK = 15_000;         // timers stand still while the machine sleeps, so the clock is read this often
const failure = (what, status) => Object.assign(new Error(`moovToken: ${what}`), { status });

// seconds reads Retry-After (RFC 9110 §10.2.3); 0 if it is not there, or of no use.
function seconds(retryAfter) {
	const s = /^\d+$/.test(retryAfter) ? Number(retryAfter) : (Date.parse(retryAfter) - Date.now()) / 1000;
	return s > 0 ? Math.min(s, 3600) : 0;
}

// moovToken begins at once. Of the options only url is required:
// { url, headers, onToken(token), onEnd(status), onTrouble({ status, retryIn }) }
export function moovToken(options) {
	let accessToken = null, expiry = 0;
	let sent = 0;      // when the last request was sent
	let due = 0;       // when the next one is due; if one is under way, when it must end
	let flight = null; // the request under way: { promise, abort }
	let failures = 0;  // since the last token
	let lost = false;  // the last request had no answer
	let ended = false, timer;

	// tell calls a function of the page. If that throws, the renewals go on.
	async function tell(name, value) {
		try { await options[name]?.(value); } catch (error) { console.error(error); }
	}

	// look does what is due. A clock that was set back tells nothing about the token, so a new one is due.
	function look() {
		if (ended) return;
		const late = Date.now() >= due || Date.now() < sent;
		if (late && !document.prerendering) flight ? flight.abort() : renew();
		clearTimeout(timer);
		const left = Math.ceil(due - Date.now());
		timer = setTimeout(look, left > 0 ? Math.min(left, LOOK) : LOOK);
	}

	function wake({ type }) {
		if (type === "online" && lost) due = 0;
		look();
	}

	const events = { visibilitychange: document, prerenderingchange: document, pageshow: window, online: window };
	const listen = (how) => Object.entries(events).forEach(([type, target]) => target[how](type, wake));

	async function ask(signal) {
		const reply = await fetch(options.url, { method: "POST", headers: options.headers, credentials: "include", signal });
		const token = reply.ok && await reply.json().catch(() => null); // null: HTML, such as a sign-in page
		return { status: reply.status, retryAfter: reply.headers.get("Retry-After"), token };
	}

	async function request(signal) {
		if (ended) throw failure("it has ended");
		const aborted = new Promise((_, reject) => signal.addEventListener("abort", reject));
		const { status, retryAfter, token } = await Promise.race([ask(signal), aborted]).catch(() => ({ status: 0 }));
		flight = null;
		if (ended) throw failure("stopped");
		if (token?.access_token && typeof token.access_token === "string") {
			const life = 1000 * (typeof token.expires_in === "number" ? token.expires_in : 300);
			[accessToken, expiry, due, failures] = [token.access_token, sent + life, sent + Math.max(0.8 * life, EARLIEST), 0];
			look();
			tell("onToken", token);
			return token.access_token;
		}
		const over = [401, 403, 409].includes(status);
		if (over) stop();
		const backOff = Math.min(5 * 2 ** failures++, 50) * (1 + Math.random() / 5); // 5 to 6 s, …, 50 to 60 s
		const slept = Date.now() - sent > 2 * REQUEST_MOST; // the machine did, with the request under way
		const retryIn = slept ? 0.1 : seconds(retryAfter) || Math.floor(10 * backOff) / 10;
		[due, lost] = [Date.now() + 1000 * retryIn, status === 0];
		look();
		over ? tell("onEnd", status) : tell("onTrouble", { status, retryIn });
		throw failure(status ? `no token: status ${status}` : "no answer", status);
	}

	function renew() {
		if (flight) return flight.promise;
		[sent, due, lost] = [Date.now(), Date.now() + REQUEST_MOST, false];
		const controller = new AbortController();
		flight = { promise: request(controller.signal), abort: () => controller.abort() };
		flight.promise.catch(() => {}); // often nobody waits for it
		look();
		return flight.promise;
	}

	function stop() {
		ended = true;
		flight?.abort();
		clearTimeout(timer);
		listen("removeEventListener");
	}

	listen("addEventListener");
	look();
	return { renew, stop, get token() { return !ended && Date.now() < expiry ? accessToken : null; } };
}
