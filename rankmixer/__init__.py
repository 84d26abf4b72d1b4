"""RankMixer ranking models on TorchRec: from Parquet to a trained, evaluated, resumable ranker."""
