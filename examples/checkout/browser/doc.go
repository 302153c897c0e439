// Package browser tries the page of examples/checkout in a real browser: headless
// Chromium, which is found as chromium or google-chrome, or named by CHROMIUM.
// Without one the tests are skipped. Screenshots are left in screenshots/.
package browser
