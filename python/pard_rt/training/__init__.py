"""Training of parallel drafts: mask prediction, a resumable loop, and the pair of the demo."""
