// moov-token.js keeps a page's access token fresh. It requests a token from
// Tokens.Handler of moovauth/platform, and the next token before that one expires.
// docs/browser.md has examples. Times are in ms, as in Date.now(), unless a comment says s.

const EARLIEST = 5_000;      // the shortest time from a request to the renewal
const REQUEST_MOST = 60_000; // the longest time for one request
const LOOK = 15_000;         // timers stop while the machine sleeps, so look reads the clock this often
const failure = (what, status) => Object.assign(new Error(`moovToken: ${what}`), { status });

// seconds returns Retry-After (RFC 9110 §10.2.3) in s, an hour at most. It returns 0 without a usable value.
function seconds(retryAfter) {
	const s = /^\d+$/.test(retryAfter) ? Number(retryAfter) : (Date.parse(retryAfter) - Date.now()) / 1000;
	return s > 0 ? Math.min(s, 3600) : 0;
}

// moovToken starts at once, or when a prerendered page is shown. Only url is required:
// { url, headers, onToken(token), onEnd(status), onTrouble({ status, retryIn }) }
export function moovToken(options) {
	let accessToken = null, expiry = 0;
	let sent = 0;      // when the last request was sent
	let due = 0;       // when the next request is due or, during a request, when that request times out
	let flight = null; // the current request: { promise, abort }
	let failures = 0;  // the number of failures since the last token
	let lost = false;  // whether the last request got no answer
	let ended = false, timer;

	// tell calls a function of the page. If the function throws, renewals continue.
	async function tell(name, value) {
		try { await options[name]?.(value); } catch (error) { console.error(error); }
	}

	// look starts a renewal, or aborts a request, when that is due. It also does so if the clock was set back.
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
		const token = reply.ok && await reply.json().catch(() => null); // null if the body is not JSON, such as a sign-in page
		return { status: reply.status, retryAfter: reply.headers.get("Retry-After"), token };
	}

	async function request(signal) {
		if (ended) throw failure("renewals have ended");
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
		const backOff = Math.min(5 * 2 ** failures++, 50) * (1 + Math.random() / 5); // in s: 5 to 6 at first, 50 to 60 at most
		const slept = Date.now() - sent > 2 * REQUEST_MOST; // the machine slept during the request
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
		flight.promise.catch(() => {}); // often no one waits for the promise
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
