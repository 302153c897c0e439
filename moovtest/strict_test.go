package moovtest_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/moovauth/moovauth/moovtest"
)

func TestParametersAndCredentialsAreCheckedStrictly(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start(moovtest.WithCredentials("id", "secret"))
		const token, revoke = "/oauth2/token", "/oauth2/revoke"
		const form, members = "grant_type=client_credentials&scope=/ping.read", `"grant_type":"client_credentials","scope":"/ping.read"`
		for name, c := range map[string]struct {
			path, contentType, body string
			basic                   bool
			status                  int
			code, contains          string
		}{
			"duplicate":                       {token, formType, form + "&scope=/fed.read", true, 400, "invalid_request", `"scope"`},
			"duplicate with the same value":   {token, formType, form + "&scope=/ping.read", true, 400, "invalid_request", `"scope"`},
			"duplicate, once without value":   {token, formType, form + "&scope=", true, 400, "invalid_request", `"scope"`},
			"duplicate of an unknown one":     {token, formType, form + "&x=1&x=2", true, 400, "invalid_request", `"x"`},
			"duplicate grant type":            {token, formType, form + "&grant_type=refresh_token", true, 400, "invalid_request", `"grant_type"`},
			"duplicate client ID":             {token, formType, form + "&client_id=id&client_id=id&client_secret=secret", false, 400, "invalid_request", `"client_id"`},
			"duplicate, escaped":              {token, formType, form + "&%73cope=/fed.read", true, 400, "invalid_request", `"scope"`},
			"duplicate in a revocation":       {revoke, formType, "token=a&token=b", true, 400, "invalid_request", `"token"`},
			"duplicate member":                {token, jsonType, `{` + members + `,"scope":"/fed.read"}`, true, 400, "invalid_request", `"scope"`},
			"duplicate member, escaped":       {token, jsonType, `{` + members + `,"\u0073cope":"/fed.read"}`, true, 400, "invalid_request", `"scope"`},
			"duplicate member, null":          {token, jsonType, `{` + members + `,"scope":null}`, true, 400, "invalid_request", `"scope"`},
			"duplicate member, revocation":    {revoke, jsonType, `{"token":"a","token":"b"}`, true, 400, "invalid_request", `"token"`},
			"once in each of two objects":     {token, jsonType, `{` + members + `,"x":{"scope":1,"x":2}}`, true, 200, "", ""},
			"unknown parameter":               {token, formType, form + "&x=1", true, 200, "", ""},
			"other client ID":                 {token, formType, form + "&client_id=other", true, 400, "invalid_request", "client_id"},
			"other client ID, JSON":           {token, jsonType, `{` + members + `,"client_id":"other"}`, true, 400, "invalid_request", "client_id"},
			"other client ID, revocation":     {revoke, formType, "token=a&client_id=other", true, 400, "invalid_request", "client_id"},
			"same client ID":                  {token, formType, form + "&client_id=id", true, 200, "", ""},
			"client ID without value":         {token, formType, form + "&client_id=", true, 200, "", ""},
			"both, agreeing":                  {token, formType, form + "&client_id=id&client_secret=secret", true, 200, "", ""},
			"both, agreeing, JSON":            {token, jsonType, `{` + members + `,"client_id":"id","client_secret":"secret"}`, true, 200, "", ""},
			"both, agreeing, revocation":      {revoke, formType, "token=a&client_id=id&client_secret=secret", true, 204, "", ""},
			"secret in both, no ID":           {revoke, formType, "token=a&client_secret=secret", true, 204, "", ""},
			"both, other ID":                  {token, formType, form + "&client_id=other&client_secret=secret", true, 400, "invalid_request", "client_id"},
			"both, other secret":              {token, formType, form + "&client_id=id&client_secret=other", true, 400, "invalid_request", "client_secret"},
			"both, other secret, JSON":        {token, jsonType, `{` + members + `,"client_id":"id","client_secret":"other"}`, true, 400, "invalid_request", "client_secret"},
			"both, other secret, revocation":  {revoke, formType, "token=a&client_id=id&client_secret=other", true, 400, "invalid_request", "client_secret"},
			"body only":                       {token, formType, form + "&client_id=id&client_secret=secret", false, 200, "", ""},
			"other grant type":                {token, formType, "grant_type=password", true, 400, "unsupported_grant_type", "client_credentials"},
			"other grant type, JSON":          {token, jsonType, `{"grant_type":"authorization_code"}`, true, 400, "unsupported_grant_type", "client_credentials"},
			"grant type in capitals":          {token, formType, "grant_type=CLIENT_CREDENTIALS&scope=/ping.read", true, 400, "unsupported_grant_type", "client_credentials"},
			"grant type with a space":         {token, formType, "grant_type=client_credentials+&scope=/ping.read", true, 400, "unsupported_grant_type", "client_credentials"},
			"JSON with something after":       {token, jsonType, `{` + members + `} {}`, true, 400, "invalid_request", "JSON object"},
			"JSON null":                       {token, jsonType, `null`, true, 400, "invalid_request", "JSON object"},
			"empty body":                      {revoke, jsonType, ``, true, 400, "invalid_request", "JSON object"},
			"parameters in the URL only":      {token + "?" + form, formType, "", true, 400, "invalid_request", "grant_type"},
			"duplicate of one in the URL":     {token + "?scope=/fed.read", formType, form, true, 200, "", ""},
			"JSON with a form's content type": {token, formType, `{` + members + `}`, true, 400, "invalid_request", "grant_type"},
		} {
			t.Run(name, func(t *testing.T) {
				before := len(s.AccessTokens())
				req := request(t, s, http.MethodPost, c.path, c.contentType, c.body)
				if c.basic {
					req.SetBasicAuth("id", "secret")
				}
				r := do(t, s, req)
				assert.Equal(t, c.status, r.StatusCode, r.body)
				if c.status >= 400 {
					assert.Equal(t, c.code, r.member(t, "error"))
					assert.Contains(t, r.member(t, "error_description"), c.contains)
					assert.Len(t, s.AccessTokens(), before)
				}
			})
		}
	})
}

func TestDuplicateParametersAreRecorded(t *testing.T) {
	s := inMemory(t)
	do(t, s, request(t, s, http.MethodPost, "/oauth2/token", formType, "scope=a&scope=b"))
	do(t, s, request(t, s, http.MethodPost, "/oauth2/token", jsonType, `{"scope":"a","scope":"b"}`))
	for _, r := range s.TokenRequests() {
		assert.Equal(t, []string{"a", "b"}, r.Form["scope"])
	}
}

func TestVersionHeader(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		s.Handle("/mine", "", echo)
		access := grant(t, s).member(t, "access_token")
		for version, ok := range map[string]bool{
			"v2024.01.00": true, "v2026.07.00": true, "v2024.00.00": true, "v9000.00.00": true, "v2023.02.13": true, "dev": true, "latest": true,
			"": false, "2024.01.00": false, "v2024.1.0": false, "v2024.01": false, "v2024.01.00.00": false, "V2024.01.00": false, "v2024-01-00": false,
			"v2024.01.00,v2025.01.00": false, "Dev": false, "vYYYY.QQ.BB": false, "v２０２４.01.00": false,
		} {
			for path, good := range map[string]int{"/oauth2/token": 200, "/oauth2/revoke": 204, "/ping": 200, "/mine": 200} {
				req := posting(t, s, path, "grant_type", "client_credentials", "scope", "/ping.read", "token", "x")
				if path == "/ping" || path == "/mine" {
					req = request(t, s, http.MethodGet, path, "", "")
					req.Header.Set("Authorization", "Bearer "+access)
				}
				req.Header.Set("X-Moov-Version", version)
				r := do(t, s, req)
				if ok {
					assert.Equal(t, good, r.StatusCode, "%s %s", path, version)
				} else if assert.Equal(t, 404, r.StatusCode, "%s %q", path, version) {
					assert.Equal(t, "not_found", r.member(t, "error"))
					assert.Contains(t, r.member(t, "error_description"), "X-Moov-Version")
				}
			}
		}
		req := request(t, s, http.MethodGet, "/ping", "", "")
		req.Header["X-Moov-Version"] = []string{"v2024.01.00", "v2024.01.00"}
		assert.Equal(t, 404, do(t, s, req).StatusCode, "the header is given twice")
	})
}

func TestTwoAuthorizationHeaders(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		access := "Bearer " + grant(t, s).member(t, "access_token")
		req := request(t, s, http.MethodGet, "/ping", "", "")
		req.Header["Authorization"] = []string{access, access}
		r := do(t, s, req)
		assert.Equal(t, 400, r.StatusCode)
		assert.Equal(t, "invalid_request", r.member(t, "error"))

		req = request(t, s, http.MethodGet, "/ping", "", "")
		req.Header["authorization"] = []string{access}
		assert.Equal(t, 200, do(t, s, req).StatusCode, "upper and lower case in a name do not matter")
		req.Header["Authorization"] = []string{access}
		assert.Equal(t, 400, do(t, s, req).StatusCode)

		req = posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read")
		req.Header.Add("Authorization", access)
		assert.Equal(t, 400, do(t, s, req).StatusCode)
	})
}
