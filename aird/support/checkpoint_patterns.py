"""The files of a model folder in Hugging Face format, by the names that they are known by."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
DESCRIPTION = ("*.json", "*.jinja", "*.txt", "*.model")
CODE = "*.py"  # the model's own, taken only where it is trusted
# What a wrapper of vision and language says about its images.
PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
