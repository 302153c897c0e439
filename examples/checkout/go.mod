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
)

require (
	github.com/hashicorp/golang-lru/v2 v2.0.7 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/oauth2 v0.37.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/time v0.16.0 // indirect
)
