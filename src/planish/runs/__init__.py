"""Run folders: train, evaluate, audit and compare into a folder, and read it back."""
