"""All networks: frozen encoders, mapping network, language model, caption model, and their checkpoints."""
