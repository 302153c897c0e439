package checkout

// This file is the embedded test server, which takes the place of Moov. It has
// endpoints that link and list cards.

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moovauth/moovauth/moovtest"
)

// limit is how many requests per second the embedded API accepts. Moov allows a test
// account the same.
const limit = 10

// NewAPI starts a test server that links cards. Pages of the origins may call it, and
// its access tokens live for lifetime.
func NewAPI(lifetime time.Duration, origins ...string) *moovtest.Server {
	api := moovtest.NewServer(
		moovtest.WithLifetime(lifetime), moovtest.WithCORS(origins...), moovtest.WithRateLimit(limit))
	w := &wallet{cards: make(map[string][]card)}
	api.Handle("POST /accounts/{accountID}/cards", "/accounts/{accountID}/cards.write", http.HandlerFunc(w.link))
	api.Handle("GET /accounts/{accountID}/cards", "/accounts/{accountID}/cards.read", http.HandlerFunc(w.list))
	return api
}

// A wallet holds the cards of each account.
type wallet struct {
	mu    sync.Mutex        // guards the field below
	cards map[string][]card // by the account's ID
}

type card struct {
	ID       string `json:"cardID"`
	LastFour string `json:"lastFourCardNumber"`
}

// cardsMost is how many cards a wallet keeps for an account.
const cardsMost = 20

func (w *wallet) link(rw http.ResponseWriter, r *http.Request) {
	var body struct {
		Number string `json:"cardNumber"`
	}
	err := json.NewDecoder(http.MaxBytesReader(rw, r.Body, 1<<10)).Decode(&body)
	number := strings.ReplaceAll(body.Number, " ", "")
	if err != nil || !luhn(number) {
		writeJSON(rw, http.StatusUnprocessableEntity, map[string]string{"cardNumber": "is not a card number"})
		return
	}
	linked := card{ID: rand.Text(), LastFour: number[len(number)-4:]}
	account := r.PathValue("accountID")
	w.mu.Lock()
	cards := append(w.cards[account], linked)
	w.cards[account] = cards[max(0, len(cards)-cardsMost):]
	w.mu.Unlock()
	writeJSON(rw, http.StatusCreated, linked)
}

func (w *wallet) list(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	cards := append([]card{}, w.cards[r.PathValue("accountID")]...) // not nil, so that JSON has [] and not null
	w.mu.Unlock()
	writeJSON(rw, http.StatusOK, cards)
}

// luhn reports whether a number has the length and the check digit of a card number
// (ISO/IEC 7812-1).
func luhn(number string) bool {
	if len(number) < 12 || len(number) > 19 {
		return false
	}
	sum := 0
	digits := []byte(number)
	slices.Reverse(digits)
	for i, c := range digits {
		if c < '0' || c > '9' {
			return false
		}
		d := int(c-'0') << (i % 2)
		sum += d/10 + d%10
	}
	return sum%10 == 0
}
