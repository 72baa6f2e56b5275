package client

import (
	"bufio"
	"context"
	"net/http"
	"strconv"
	"strings"
)

// Metrics reads the platform's figures by name; those with labels carry them in the name.
func (c *Client) Metrics(ctx context.Context) (map[string]float64, error) {
	resp, err := c.send(ctx, request{method: http.MethodGet, path: "/metrics"})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	values := map[string]float64{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseFloat(value, 64); ok && err == nil && !strings.HasPrefix(name, "#") {
			values[name] = n
		}
	}
	return values, lines.Err()
}
