// Package browser tests the page of examples/checkout in headless Chromium. The
// tests look for chromium and google-chrome in PATH, and CHROMIUM names another
// binary. Without a browser the tests are skipped. They write screenshots to
// screenshots/.
package browser
