"""A trained model's files: description, weights, backbone, run manifest; loaded elsewhere, compared, merged.

They are written by ``MerTraining._save`` (:mod:`llm_mer.training.trainer`) and ``save_final`` (:mod:`llm_mer.training.run`);
``docs/architecture.md`` lists them.
"""
