"""Money and energy: dated prices, what a run costs, when a local model pays off against an API, and a model's life."""
