module github.com/moovauth/moovauth/examples/checkout

go 1.26.0

replace (
	github.com/moovauth/moovauth => ../../
	github.com/moovauth/moovauth/platform => ../../platform
)

require (
	github.com/moovauth/moovauth v0.1.0
	github.com/moovauth/moovauth/platform v0.1.0
	github.com/stretchr/testify v1.12.1
	golang.org/x/oauth2 v0.37.0
)

require (
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/text v0.43.0 // indirect
)
