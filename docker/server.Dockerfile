# The whole road on a GPU server: TensorRT 10.13, CUDA 13, Python 3.12.
#
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/workspace" reptrt-server \
#       engine mobileone_s0 --weights weights.pth --data images --device cuda
FROM nvcr.io/nvidia/tensorrt:25.09-py3

# Ubuntu marks its Python as its own; in an image there is no other user of it. TensorRT stays that of
# the image: without the constraint, pip would bring the newest beside it.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1
RUN echo 'tensorrt==10.13.3.9' > /etc/pip-constraint.txt
ENV PIP_CONSTRAINT=/etc/pip-constraint.txt

# Dependencies are one large layer that changes with pyproject.toml only; the code is a small one.
WORKDIR /src
COPY pyproject.toml ./
# With --build-arg EXTRAS="tensorrt cluster" it is a node of a Ray cluster too (docs/how-to/sweep.md).
ARG EXTRAS="tensorrt"
RUN python3 -c "import os, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        extras = [project['optional-dependencies'][name] for name in os.environ['EXTRAS'].split()]; \
        print(*project['dependencies'], *sum(extras, []), sep='\n')" \
        > requirements.txt \
    && pip install --requirement requirements.txt
COPY README.md LICENSE ./
COPY reptrt reptrt
COPY models models
COPY calibrators calibrators
COPY engines engines
COPY pipeline pipeline
RUN pip install --no-deps .

# Any --user may run it, so nothing depends on a home folder.
RUN useradd reptrt
ENV HOME=/tmp
USER reptrt
WORKDIR /workspace
ENTRYPOINT ["reptrt"]
CMD ["doctor"]
