module github.com/moovauth/moovauth/platform

go 1.26.0

replace github.com/moovauth/moovauth => ../

require (
	github.com/hashicorp/golang-lru/v2 v2.0.7 // indirect
	github.com/stretchr/testify v1.12.1 // indirect
	golang.org/x/oauth2 v0.37.0 // indirect
	golang.org/x/time v0.16.0 // indirect
)
