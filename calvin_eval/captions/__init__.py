"""Texts about play tables, written from the true state, and pictures to go with them: what eyes are pre-trained on."""
