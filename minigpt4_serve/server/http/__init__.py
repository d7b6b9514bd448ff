"""HTTP: routes, middleware, the chat service behind them, and uvicorn on a shared socket."""
