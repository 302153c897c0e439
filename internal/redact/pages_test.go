package redact

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

const nginx = "<html>\r\n<head><title>403 Forbidden</title></head>\r\n<body>\r\n<center><h1>403 Forbidden</h1></center>\r\n<hr><center>nginx/1.25.3</center>\r\n</body>\r\n</html>\r\n<!-- a padding to disable MSIE and Chrome friendly error page -->\r\n"

// cloudflare is shaped like the page that a content delivery network shows for
// a blocked request.
var cloudflare = `<!DOCTYPE html>
<!--[if lt IE 7]> <html class="no-js ie6 oldie" lang="en-US"> <![endif]-->
<head>
<title>Attention Required! | Cloudflare</title>
<meta charset="UTF-8" /><meta name="robots" content="noindex, nofollow" />
<link rel="stylesheet" id="cf_styles-css" href="/cdn-cgi/styles/cf.errors.css?v=1.2&amp;t=9f3b4a39" />
<link rel="icon" href="data:image/png;base64,` + strings.Repeat("iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAYAAAAf8/9hAAAABHNCSVQICAgIfAhkiAAAAAlwSFlz", 8) + `==">
<script>
  (function(){if (document.addEventListener && window.XMLHttpRequest && JSON && JSON.stringify) {
      var e = /\b(\d+)\.(\w+)\\n/g, a = "https:\/\/api.moov.io\/oauth2\/token?x=%5B%22a%22%5D&y=\u003cb\u003e";
  }})();
</script>
</head>
<body>
  <div id="cf-wrapper"><div id="cookie-alert">Please enable cookies.</div>
  <h1 data-translate="block_headline">Sorry, you have been blocked</h1>
  <h2><span>You are unable to access</span> api.moov.io</h2>
  <p>This website is using a security service to protect itself from online attacks. The action you just performed triggered the security solution.
  There are several actions that could trigger this block including submitting a certain word or phrase, a SQL command or malformed data.</p>
  <p><span>Cloudflare Ray ID: <strong>8c1f2b3d4e5f6a7b</strong></span> <span>&bull;</span> Your IP: 203.0.113.7 &bull;
  <span>Performance &amp; security by</span> <a href="https://www.cloudflare.com/5xx-error-landing?utm_source=errorcode_403&utm_campaign=moov.io">Cloudflare</a> &copy; 2026&nbsp;&#8212; &lt;end&gt;</p>
  <!-- token_endpoint: unreachable; 100% of requests -->
</div></body></html>
` + strings.Repeat("<p>Nothing to see here, please move along &amp; come back later.</p>\n", 50)

// Text from outside that holds no secret stays as it is, whatever the Set knows.
func TestBenignTextStaysReadable(t *testing.T) {
	for name, text := range map[string]string{
		"page of a web server":      nginx,
		"page of a CDN":             cloudflare,
		"UUID":                      "0c7d4bd2-5d9f-4c1e-8f3b-4a399a5e1c2d",
		"refusal":                   `{"error":"invalid_client","error_description":"Client authentication failed: the access token is missing, or the refresh token is not known"}`,
		"refusal that names fields": `{"error":{"scope":"unknown scope \"\/accounts\/{accountID}\/transfers.write\"","refresh_token_hint":"is required"}}`,
		"pretty JSON":               "{\n  \"timestamp\": \"2026-11-23T09:00:00.000+00:00\",\n  \"status\": 403,\n  \"error\": \"Forbidden\",\n  \"path\": \"/oauth2/token\"\n}",
		"load balancer":             "<html><body><b>Http/1.1 Service Unavailable</b></body> </html>",
		"gateway in XML":            `<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message><RequestId>4442587FB7D0A2F9</RequestId></Error>`,
		"upstream error":            "upstream connect error or disconnect/reset before headers. reset reason: connection timeout",
		"trace":                     "goroutine 1 [running]:\nmain.main()\n\t/home/u/src/main.go:17 +0x1d\n",
		"WWW-Authenticate":          `Bearer realm="api", error="invalid_token", error_description="The access token expired"`,
		"other languages":           "Zugriff verweigert: Schlüssel ungültig – アクセスが拒否されました",
		"form":                      "error=invalid_request&error_description=The+Origin+header+is+missing%2E",
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, Cut(text, maxText), full().Text(text))
			assert.Equal(t, Cut(text, maxText), full().Body(text))
		})
	}
}
