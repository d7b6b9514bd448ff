"""HTTP: routes, middleware, and the service behind them. Knows no Ray."""
