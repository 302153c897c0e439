module github.com/moovauth/moovauth/examples/fleet/limit

go 1.26.0

replace (
	github.com/moovauth/moovauth => ../../../
	github.com/moovauth/moovauth/platform => ../../../platform
	github.com/moovauth/moovauth/rediscache => ../../../rediscache
)

require (
	github.com/alicebob/miniredis/v2 v2.40.0
	github.com/moovauth/moovauth v0.1.0
	github.com/moovauth/moovauth/platform v0.1.0
	github.com/moovauth/moovauth/rediscache v0.1.0
	github.com/redis/go-redis/v9 v9.23.0
	github.com/stretchr/testify v1.12.1
)

require (
	github.com/bsm/redislock v0.9.4 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/yuin/gopher-lua v1.1.1 // indirect
	go.uber.org/atomic v1.12.0 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/oauth2 v0.37.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
)
