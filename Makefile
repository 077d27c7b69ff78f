.PHONY: setup quickstart test test-slow lint clean

quickstart:
	scripts/setup.sh media,dev
	scripts/quickstart.sh $(UTTERANCES)

setup:
	scripts/setup.sh media,deepspeed,dev

test: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: setup
	.venv/bin/python -m pytest -m slow

lint: setup
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

clean:
	rm -rf .venv runs data .llm_mer_cache
