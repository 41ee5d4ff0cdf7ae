# The engine side alone, without PyTorch, for a Jetson with JetPack 6 (TensorRT 10.3, Python 3.10).
# There is no command line for it: calibrate and export elsewhere, bring model.trt.onnx, and build
# the engine with the library.
#
#   docker run --rm --runtime nvidia --volume "$PWD:/work" reptrt-jetson -c "
#   from pathlib import Path
#   from engines.builder import build_engine
#   from engines.target import TARGETS, load_backend
#   trt = load_backend(TARGETS['jetson-orin'])
#   print(build_engine(Path('model.trt.onnx'), Path('model.engine'), trt).seconds)"
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip \
    && rm -rf /var/lib/apt/lists/*
RUN pip3 install --no-cache-dir 'numpy>=1.26' 'onnx>=1.18' 'pillow>=10.3' 'polygraphy>=0.53'

COPY engines /opt/reptrt/engines
ENV PYTHONPATH=/opt/reptrt
WORKDIR /work
ENTRYPOINT ["python3"]
CMD ["-c", "import engines.builder, tensorrt; print('TensorRT', tensorrt.__version__)"]
