"""Commands about candidates: judge one, publish it, and see what a campaign bought."""
