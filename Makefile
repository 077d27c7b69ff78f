.PHONY: setup quickstart test test-slow test-gpu fuzz fuzz-coverage kills interrupts lint docs wheel clean

quickstart:
	scripts/setup.sh media,dev
	.venv/bin/llm-mer quickstart $(if $(UTTERANCES),--utterances $(UTTERANCES))

setup:
	scripts/setup.sh media,deepspeed,dev

test: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-slow: setup
	.venv/bin/python -m pytest -m slow

test-gpu: setup
	LLM_MER_TEST_DEVICE=cuda .venv/bin/python -m pytest -m gpu

fuzz: setup
	OMP_NUM_THREADS=1 .venv/bin/python tests/security/fuzz.py --seconds $(or $(SECONDS),60) --seed $(or $(SEED),0) $(TARGETS)

fuzz-coverage: setup
	OMP_NUM_THREADS=1 .venv/bin/python tests/security/fuzz_by_coverage.py --seconds $(or $(SECONDS),60) $(or $(TARGET),manifest)

kills: setup
	OMP_NUM_THREADS=1 .venv/bin/python tests/faults/kills.py --rounds $(or $(ROUNDS),20) --seed $(or $(SEED),0) $(COMMANDS)

interrupts: setup
	OMP_NUM_THREADS=1 .venv/bin/python tests/faults/interrupts.py --rounds $(or $(ROUNDS),5) --seed $(or $(SEED),0) $(COMMANDS)

lint: setup
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

docs:
	scripts/setup.sh media,dev,docs
	.venv/bin/mkdocs build --strict --site-dir build/site

wheel: setup
	.venv/bin/python -m hatchling build -t wheel -t sdist -d dist

clean:
	rm -rf .venv runs data .llm_mer_cache
