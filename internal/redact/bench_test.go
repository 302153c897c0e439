package redact

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

func full() *Set {
	s := setOf("s3cr3t-key-4711", base64.StdEncoding.EncodeToString([]byte("public-key:s3cr3t-key-4711")))
	for i := range keep {
		s.Add(fmt.Sprintf("%04d", i) + strings.Repeat(fmt.Sprintf("eyJ%03dhbGciOiJI", i*37), 60))
	}
	return s
}

func BenchmarkText(b *testing.B) {
	all := strings.Repeat(`&#x3d;\u0041%2541QUJDREVGR0hJSktMTU5PUA==`, 1<<15)
	for name, text := range map[string]string{
		"uuid":        "0c7d4bd2-5d9f-4c1e-8f3b-4a399a5e1c2d",
		"json":        `{"error":"invalid_client","error_description":"no such key"}`,
		"page":        nginx,
		"cloudflare":  cloudflare,
		"hostile":     all,
		"base64":      strings.Repeat("QUJDREVGR0hJSktMTU5PUA", 1<<15),
		"percents":    strings.Repeat("%25", 1<<18),
		"backslashes": strings.Repeat(`\`, 1<<20),
		"entities":    strings.Repeat("&abcdefghijklmnop", 1<<16),
		"a":           strings.Repeat("a", 1<<20),
		"V":           strings.Repeat("V", 1<<20),
	} {
		b.Run(name, func(b *testing.B) {
			s := full()
			b.ReportAllocs()
			for b.Loop() {
				s.Body(text)
			}
		})
	}
}
