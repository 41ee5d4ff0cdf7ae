# Runs build kits on a Jetson with JetPack 6 (TensorRT 10.3, CUDA 12.6, Python 3.10); no PyTorch. A kit
# brings its own program, so the image holds only what that needs. Pillow is for `reptrt.engines.outputs.detection`.
#
#   tar -xzf mobileone_s0-jetson-orin-nx-kit.tar.gz
#   docker run --rm --runtime nvidia --user "$(id -u):$(id -g)" --group-add video \
#       --volume "$PWD:/workspace" reptrt-jetson mobileone_s0-jetson-orin-nx-kit/build.pyz --install engines
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-pip \
    && rm -rf /var/lib/apt/lists/*
# PyCUDA compiles against the CUDA of this image.
RUN PATH=/usr/local/cuda/bin:$PATH \
    pip3 install --no-cache-dir numpy==1.26.4 pillow==11.3.0 pycuda==2024.1.2

# Any --user may run it, so nothing depends on a home folder; timings are kept beside the engines.
RUN useradd --groups video reptrt
ENV HOME=/tmp XDG_CACHE_HOME=/workspace/.cache
USER reptrt
WORKDIR /workspace
ENTRYPOINT ["python3"]
CMD ["-c", "import pycuda, tensorrt; print('TensorRT', tensorrt.__version__, 'PyCUDA', pycuda.VERSION_TEXT)"]
