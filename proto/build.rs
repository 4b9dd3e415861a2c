//! Compiles the schema without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schemas = ["distill/v1/teacher.proto", "distill/v1/cache.proto"];
    for schema in schemas {
        println!("cargo::rerun-if-changed={schema}");
    }
    let descriptors = protox::compile(schemas, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("distill_descriptor.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        .bytes(".distill.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
