package httpapi

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"spillway.dev/spillway/internal/fault"
)

// maxForm bounds the body of a token request, in bytes.
const maxForm = 64 << 10

// maxTokenCalls is the bucket that all token requests of one client id share, beside the principal's own.
const tokenBucket = "token "

// token is the OAuth 2 token endpoint: client credentials only.
func (a *api) token(c *call) error {
	if kind := c.r.Header.Get("Content-Type"); !strings.HasPrefix(strings.ToLower(kind), "application/x-www-form-urlencoded") {
		return c.oauthError(http.StatusBadRequest, "invalid_request", "AADSTS900144: The request body must be a form (application/x-www-form-urlencoded).")
	}
	if t, ok := c.params["tenant"]; ok && !strings.EqualFold(t, a.Identity.Tenant().ID) && !strings.EqualFold(t, "adfs") {
		return c.oauthError(http.StatusBadRequest, "invalid_request", "AADSTS90002: Tenant '"+short(t)+"' not found. This platform's tenant is in client.json.")
	}
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxForm)
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(bodyTimeout)) // not every writer has deadlines
	if err := c.r.ParseForm(); err != nil {
		return c.oauthError(http.StatusBadRequest, "invalid_request", "AADSTS900144: The request body is not a form.")
	}
	form := c.r.PostForm
	if kind := form.Get("grant_type"); kind != "client_credentials" {
		return c.oauthError(http.StatusBadRequest, "unsupported_grant_type", "AADSTS70003: The grant type '"+short(kind)+"' is not supported. Use client_credentials.")
	}
	id, secret := credentials(c.r, form)
	if id == "" || secret == "" {
		return c.oauthError(http.StatusBadRequest, "invalid_request", "AADSTS900144: The request body must contain 'client_id' and 'client_secret'.")
	}
	if a.buckets.take(tokenBucket+id, a.Now()) < 0 {
		return fault.New(fault.Exhausted, "", "Too many token requests. Slow down and try again.")
	}
	raw, life, err := a.Identity.Token(id, secret)
	if err != nil {
		if fault.KindOf(err) == fault.Unauthenticated {
			return c.oauthError(http.StatusUnauthorized, "invalid_client", err.Error())
		}
		return err
	}
	c.w.Header().Set("Cache-Control", "no-store")
	seconds := int(life / time.Second)
	body := map[string]any{"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": raw}
	if form.Get("resource") != "" { // the older endpoint tells times as text
		body["expires_in"] = strconv.Itoa(seconds)
		body["expires_on"] = strconv.FormatInt(a.Now().Add(life).Unix(), 10)
		body["resource"] = form.Get("resource")
	}
	return c.answer(http.StatusOK, body)
}

// credentials are in the form, or in the header as RFC 6749 has it.
func credentials(r *http.Request, form url.Values) (id, secret string) {
	if id, secret, ok := r.BasicAuth(); ok {
		if plain, err := url.QueryUnescape(id); err == nil {
			id = plain
		}
		if plain, err := url.QueryUnescape(secret); err == nil {
			secret = plain
		}
		return id, secret
	}
	return form.Get("client_id"), form.Get("client_secret")
}

func short(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}

// oauthError is the body that OAuth clients understand.
func (c *call) oauthError(status int, code, description string) error {
	return c.answer(status, map[string]any{"error": code, "error_description": description, "correlation_id": c.id, "error_codes": []int{}})
}

func (a *api) openID(c *call) error {
	tenant := c.params["tenant"]
	if tenant == "" {
		tenant = "adfs"
	}
	base := c.base() + "/" + url.PathEscape(tenant)
	tokenPath := "/oauth2/v2.0/token"
	if strings.EqualFold(tenant, "adfs") {
		tokenPath = "/oauth2/token"
	}
	return c.answer(http.StatusOK, map[string]any{
		"issuer": base + "/v2.0", "authorization_endpoint": base + "/oauth2/v2.0/authorize", "token_endpoint": base + tokenPath,
		"response_types_supported": []string{"token"}, "subject_types_supported": []string{"public"},
		"id_token_signing_alg_values_supported": []string{"ES256"}, "token_endpoint_auth_methods_supported": []string{"client_secret_post", "client_secret_basic"},
	})
}

// metadata tells the Azure CLI where everything is.
func (a *api) metadata(c *call) error {
	base := c.base()
	endpoints := map[string]any{
		"galleryEndpoint": "", "graphEndpoint": base + "/graph", "portalEndpoint": "",
		"authentication": map[string]any{"loginEndpoint": base + "/adfs", "audiences": []string{base + "/"}},
	}
	if v := c.query("api-version"); v >= "2019" {
		endpoints["name"], endpoints["resourceManager"] = "Spillway", base
		endpoints["authentication"] = map[string]any{"loginEndpoint": base + "/adfs", "audiences": []string{base + "/"}, "tenant": a.Identity.Tenant().ID, "identityProvider": "ADFS"}
		return c.answer(http.StatusOK, []any{endpoints})
	}
	return c.answer(http.StatusOK, endpoints)
}

// quoted writes a string as JSON inside a message.
func quoted(s string) string {
	data, err := json.Marshal(short(s))
	if err != nil { // strings always marshal
		return "?"
	}
	return string(data)
}
