"""The files that come with the package: prompts, configurations, launch scripts."""
